"""What a stage of training makes small: one module an objective."""
