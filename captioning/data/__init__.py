"""Images, captions and training shards: from bytes to arrays and token ids, and back."""
