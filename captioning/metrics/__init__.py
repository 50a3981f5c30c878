"""Caption metrics in plain Python, equal to the reference scorers."""
