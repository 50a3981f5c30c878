"""What `report` does: one pass over a table, and a page about it."""
