"""What happens to one shard, wherever it is: pixels, captions, and what is done about images that kill."""
