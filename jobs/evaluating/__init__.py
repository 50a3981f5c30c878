"""The implementation of `evaluate`: captioning and scoring a split, the decoding search, and tables."""
