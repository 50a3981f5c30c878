"""The implementation of `prepare`: reads captions, plans shards, and writes them in parallel."""
