"""The work of `compare`: joins two runs, counts, and presents the result as text and as a page."""
