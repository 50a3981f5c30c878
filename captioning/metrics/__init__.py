"""Caption metrics in plain Python that give the same numbers as the reference scorers."""
