"""CPU cores: which ones this process may use, pinning to some of them, and a machine-wide lock to claim them."""

import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


def usable_cores() -> set[int]:
    """Ids of the cores that this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def set_affinity(cores: Collection[int]) -> None:
    """Pin this thread, and the threads and processes it starts, to `cores`. Does nothing for no cores, or off Linux."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


@contextmanager
def affinity(cores: Collection[int]) -> Iterator[None]:
    """`set_affinity` while the body runs."""
    before = usable_cores()
    set_affinity(cores)
    try:
        yield
    finally:
        set_affinity(before)


@contextmanager
def try_lock(name: str) -> Iterator[bool]:
    """Take this user's lock `name` on this machine while the body runs; yields False where another process has it."""
    with (Path(tempfile.gettempdir()) / f"captioning-{name}-{os.getuid()}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
