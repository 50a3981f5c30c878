"""What `prepare` does: captions read, shards planned, and written in parallel."""
