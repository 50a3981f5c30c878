"""The driver of a run: checks the request, builds the index, distributes shards, folds parts, verifies the table."""
