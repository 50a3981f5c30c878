"""What `evaluate` does beside scoring: a search for a decoding, and tables."""
