"""Images, captions, tokenizers and training shards."""
