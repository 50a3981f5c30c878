"""The work on one shard in any process: decoding, captioning, and the handling of images that crash a process."""
