"""What `compare` does: two runs joined, counted, told in text and on a page."""
