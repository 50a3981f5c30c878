"""A Ray to run on: the one that is there, the cluster that RAY_ADDRESS names, or a local one.

Knows nothing of what runs on it. What it started it stops; what it found it leaves as it was.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from captioning.errors import UnfinishedError
from jobs.cli import terminate_as_interrupt

_GIB = 1024**3
_MIB = 1024**2

#: Quiet, private and fair to the machine; each can be set otherwise in the environment.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers at a lower priority than everything else starve on a busy machine.
    "RAY_worker_niceness": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[None]:
    """Run the body on a Ray, and leave things as they were.

    A Ray that this process already uses is used as it is. Otherwise the cluster of RAY_ADDRESS is
    joined, or a single-node Ray started on this machine with `num_cpus` CPUs (all of them by
    default) and shut down afterwards. Raises `UnfinishedError` where no Ray can be had.
    """
    quiet_environment()

    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address="auto", configure_logging=True, logging_level="error", log_to_driver=False)
        else:
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                configure_logging=True,
                logging_level="error",
                log_to_driver=False,
                object_store_memory=object_store_bytes(),
            )
    except Exception as error:  # Ray raises bare exceptions too: a node that was slow to start, say
        ray.shutdown()
        where = f"the cluster at RAY_ADDRESS={address}" if address else "a local Ray"
        advice = (
            "Check the address, and that the token is there (RAY_AUTH_MODE=token, RAY_AUTH_TOKEN or its file) "
            "if the cluster asks for one; unset RAY_ADDRESS to run on this machine."
            if address
            else "Give the same command again when the machine is less busy; the logs are in "
            "/tmp/ray/session_latest/logs."
        )
        raise UnfinishedError(f"Could not start on {where}: {str(error).rstrip('.')}. {advice}") from error
    try:
        # ray.init puts its own handler on SIGTERM, so ours goes on again.
        with terminate_as_interrupt():
            yield
    finally:
        ray.shutdown()


def quiet_environment() -> None:
    """Set the variables that Ray reads when it is imported and started, where they are not set."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def object_store_bytes() -> int:
    """A modest object store for one machine: 20% of its memory, at most 2 GiB and half of free /dev/shm."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(2 * _GIB, memory // 5, _cgroup_memory_bytes() // 5)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = min(size, shutil.disk_usage(shared).free // 2)
    return max(size, 128 * _MIB)


def _cgroup_memory_bytes() -> int:
    """The memory a container is allowed, or a number too large to matter."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(name).read_text())
        except (OSError, ValueError):
            continue
    return 1 << 60
