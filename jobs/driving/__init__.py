"""One process that drives a run: checks, index, shards handed out, parts folded, rows made again, the end."""
