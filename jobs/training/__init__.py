"""Supports `train` around Ray Train: places, starts and restarts workers, and shows their progress."""
