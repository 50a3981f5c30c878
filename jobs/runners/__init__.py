"""Who captions a run's shards: Ray Data with pools that fit the cluster, or processes of this machine."""
