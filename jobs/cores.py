"""The cores of this machine that a process may use. Knows nothing of what runs on them."""

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager


def usable_cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def keep_to(cores: Collection[int]) -> None:
    """Have this thread, and all that it starts, use these cores alone. Does nothing for none, or but on Linux."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


@contextmanager
def kept_to(cores: Collection[int]) -> Iterator[None]:
    """The same while the body runs."""
    before = usable_cores()
    keep_to(cores)
    try:
        yield
    finally:
        keep_to(before)
