"""The cores of this machine: which a process may use, and who was first to claim them. Knows nothing of what runs."""

import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path


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


@contextmanager
def first_claim(what: str) -> Iterator[bool]:
    """Whether no other process of this user here has a claim to `what`: then this one has it until the body ends."""
    with (Path(tempfile.gettempdir()) / f"captioning-{what}-{os.getuid()}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
