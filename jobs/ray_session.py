"""Connects to Ray: the one this process already uses, the cluster of RAY_ADDRESS, or a local one.

Stops what it started, and leaves what it found as it was.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from captioning.errors import UnfinishedError
from jobs.interrupts import sigterm_as_interrupt
from jobs.shared_options import is_verbose

_GIB = 1024**3
_MIB = 1024**2
_START_ATTEMPTS = 5

#: No usage reports, no lowered priority; each variable can be overridden in the environment.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Workers at a lower priority than everything else starve on a busy machine.
    "RAY_worker_niceness": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
#: Also set unless --verbose asks for Ray's messages.
_QUIET = {"RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_BACKEND_LOG_LEVEL": "fatal"}


@contextmanager
def ray_session(*, num_cpus: int | None = None) -> Iterator[None]:
    """Run the body with Ray, and restore the previous state afterwards.

    A Ray that this process already uses is used as it is. Otherwise this joins the cluster of
    RAY_ADDRESS, or starts a single-node Ray on this machine with `num_cpus` CPUs (all of them by
    default) and shuts it down afterwards. Raises `UnfinishedError` where that fails.
    """
    quiet_environment()

    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        join_cluster(address)
    else:
        start_local(num_cpus=num_cpus)
    try:
        # ray.init installs its own SIGTERM handler, so ours is set again.
        with sigterm_as_interrupt():
            yield
    finally:
        ray.shutdown()


def join_cluster(address: str) -> None:
    """Connect to the cluster of RAY_ADDRESS. Raises `UnfinishedError`."""
    quiet_environment()

    import ray

    try:
        with _silent_start():
            ray.init(address=address, **_logging())
    except SystemExit:
        raise _terminated() from None
    except Exception as error:  # Ray raises bare exceptions too
        ray.shutdown()
        raise UnfinishedError(
            f"Could not connect to the cluster at RAY_ADDRESS={address}: {error}. Check the address, and the token if "
            "the cluster requires one (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN). Unset RAY_ADDRESS to run on this "
            "machine."
        ) from error


def start_local(*, num_cpus: int | None = None, object_store_memory: int | None = None) -> None:
    """Start a single-node Ray on this machine, without a dashboard and quietly. Raises `UnfinishedError`.

    Ray gives its processes half a minute to start, too little on a very busy machine, so this retries a
    few times.
    """
    quiet_environment()

    import ray

    for attempt in range(_START_ATTEMPTS):
        try:
            with _silent_start():
                ray.init(
                    address="local",
                    num_cpus=num_cpus,
                    include_dashboard=False,
                    **_logging(),
                    object_store_memory=object_store_memory or object_store_bytes(),
                )
        except SystemExit as error:
            _stop_half_started(error)
            raise _terminated() from None
        except Exception as error:  # Ray raises bare exceptions too
            _stop_half_started(error)
            ray.shutdown()
            if attempt + 1 < _START_ATTEMPTS and "timed out" in str(error):
                continue
            raise UnfinishedError(
                f"Could not start a local Ray: {str(error).rstrip('.')}. Its logs are in {log_folder()}; "
                "if the machine is very busy, run the same command again later."
            ) from error
        else:
            return


def log_folder() -> Path:
    """Where a local Ray writes its logs, chosen as Ray does."""
    temporary = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if sys.platform == "linux" else None)
    return Path(temporary or "/tmp") / "ray" / "session_latest" / "logs"


def _terminated() -> KeyboardInterrupt:
    """SIGTERM while Ray starts, whose own handler would exit with a meaningless code; shuts Ray down."""
    import ray

    ray.shutdown()
    return KeyboardInterrupt()


@contextmanager
def _silent_start() -> Iterator[None]:
    """Discard what Ray's C++ code prints while it starts: its logs have it, and errors are raised."""
    if is_verbose():
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _stop_half_started(error: BaseException) -> None:
    """Kill the processes of a node that did not start in time; Ray leaves them behind."""
    trace = error.__traceback__
    while trace is not None:
        node: Any = trace.tb_frame.f_locals.get("self")
        if node is not None and hasattr(node, "kill_all_processes"):
            with suppress(Exception):
                node.kill_all_processes(check_alive=False, allow_graceful=False, wait=True)
            return
        trace = trace.tb_next


def quiet_environment() -> None:
    """Set the variables that Ray reads when it is imported and started, unless they are set already."""
    for name, value in (_ENVIRONMENT if is_verbose() else _ENVIRONMENT | _QUIET).items():
        os.environ.setdefault(name, value)
    # `ray start` requires a token where one exists, but clients send theirs only in token mode. A cluster without
    # authentication ignores it.
    if os.environ.get("RAY_ADDRESS") and _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _has_token() -> bool:
    """Whether there is a token in one of the places where Ray looks."""
    named = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys()
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _logging() -> dict[str, Any]:
    """How much Ray logs to this process, about itself and its workers."""
    return {"logging_level": "info" if is_verbose() else "error", "log_to_driver": is_verbose()}


def object_store_bytes() -> int:
    """The object store's size on one machine: 20% of its memory, at most 2 GiB and half of free /dev/shm."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    size = min(2 * _GIB, memory // 5, _cgroup_memory_bytes() // 5)
    shared = Path("/dev/shm")
    if shared.is_dir():
        size = min(size, shutil.disk_usage(shared).free // 2)
    return max(size, 128 * _MIB)


def _cgroup_memory_bytes() -> int:
    """The container's memory limit, or a very large number where there is none."""
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(name).read_text())
        except (OSError, ValueError):
            continue
    return 1 << 60
