"""The work of `report`: one pass over a table, and an HTML page about it."""
