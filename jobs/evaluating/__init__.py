"""What `evaluate` does: a split captioned and scored, a search for a decoding, and tables."""
