"""The bookkeeping of one run: its index, shards, table and checks.

Independent of models and of what schedules the work.
"""
