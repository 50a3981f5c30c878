"""How it runs: the Ray Data and Ray Train programs behind `python -m jobs VERB`."""
