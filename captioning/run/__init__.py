"""The bookkeeping of captioning one archive: its index, shards, table and checks.

Knows nothing of models or of what schedules the work.
"""
