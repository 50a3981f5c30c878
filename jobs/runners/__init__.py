"""Runners, which caption a run's shards: on Ray Data with pools that fit the cluster, or in local processes."""
