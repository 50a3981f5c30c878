"""Checks of this machine: Python, cores, memory, disks, GPUs, and a container's limits on them."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from captioning.storage import Location
from jobs.cores import usable_cores
from jobs.diagnosis.all_checks import Finding
from jobs.gpus import GpuDriverError, read_gpus

_GIB = 2**30
_OLDEST = (3, 11)
#: Memory of a captioner on a CPU and its decoder, in bytes.
_MEMORY_A_CORE = 1.0 * _GIB
#: Free bytes of a disk: below the first the check fails, below the second it warns.
_LEAST_DISK, _LITTLE_DISK = 0.5 * _GIB, 5 * _GIB
#: Ray writes nothing to a disk that is fuller than this.
_RAY_FULL = 0.95
_LITTLE_SHARED = 1 * _GIB
_CGROUP = Path("/sys/fs/cgroup")


def python() -> Iterator[Finding]:
    """The interpreter."""
    text = f"{platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"
    if sys.version_info < _OLDEST:
        yield Finding("python", "fail", text, "Use Python 3.11 or newer: make setup PYTHON=python3.11 VENV=.venv-311")
    elif sys.prefix == sys.base_prefix and not Path("/.dockerenv").exists():
        todo = "If packages conflict, `make setup` creates a separate environment; then use .venv/bin/python."
        yield Finding("python", "ok", text + ", no virtual environment", todo)
    else:
        yield Finding("python", "ok", text)


def cores(cgroup: Path = _CGROUP) -> Iterator[Finding]:
    """The usable cores, and OMP_NUM_THREADS."""
    usable, allowed = len(usable_cores()), cpu_quota(cgroup)
    threads = os.environ.get("OMP_NUM_THREADS")
    text = f"{usable} of {os.cpu_count()} usable" + (f", OMP_NUM_THREADS={threads}" if threads else "")
    if allowed is not None and allowed < usable * 0.99:
        yield Finding(
            "cores",
            "warn",
            f"{text}, but this container's CPU limit is {allowed:g}",
            f"Raise the limit, or run fewer captioners: --set runtime.actors={max(1, int(allowed))}",
        )
    elif threads is not None and threads.isdigit() and int(threads) > usable:
        todo = f"Too many threads slow each other down: unset OMP_NUM_THREADS, or set it to {usable} or less."
        yield Finding("cores", "warn", text, todo)
    else:
        yield Finding("cores", "ok", text)


def cpu_quota(cgroup: Path = _CGROUP) -> float | None:
    """The CPU quota of this process's container, in cores; None without a limit. Reads cgroup v2 and v1."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return float(quota) / float(period) if quota.isdigit() and float(period) else None


def memory(cgroup: Path = _CGROUP) -> Iterator[Finding]:
    """The machine's memory, and a container's limit."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    allowed = memory_limit(cgroup)
    size = there if allowed is None else min(there, allowed)
    text = f"{size / _GIB:.1f} GiB" + (f" of {there / _GIB:.1f} GiB (container limit)" if size < there else "")
    if size < _MEMORY_A_CORE * len(usable_cores()):
        fit = max(1, int(size / _MEMORY_A_CORE) - 1)
        yield Finding(
            "memory",
            "warn" if size > _GIB else "fail",
            f"{text} for {len(usable_cores())} cores",
            f"A captioner needs about 1 GiB: run fewer with --set runtime.actors={fit}, or add memory.",
        )
    else:
        yield Finding("memory", "ok", text)


def memory_limit(cgroup: Path = _CGROUP) -> int | None:
    """The memory limit of this process's container, in bytes; None without a limit."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((cgroup / name).read_text())
        except (OSError, ValueError):
            continue
    return None


def disks(output: str | None) -> Iterator[Finding]:
    """Free space for a run, temporary files and Ray's files."""
    temporary = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    places = {"temporary files": temporary}
    root = Location.parse(output) if output is not None else None
    if root is None:
        places = {"this folder": Path.cwd(), **places}
    elif root.is_local:
        places = {"OUTPUT": _existing(root.local_path), **places}
    for name, path in places.items():
        usage = shutil.disk_usage(path)
        text = f"{usage.free / _GIB:,.1f} GiB free for {name} ({path})"
        full = usage.used / usage.total > _RAY_FULL if usage.total else False
        if usage.free < _LEAST_DISK:
            yield Finding("disk", "fail", text, f"Free up space on the disk of {path}, or choose another location.")
        elif full and path == temporary:
            todo = (
                "Ray does not write to a disk that is over 95% full: free up space, or set RAY_TMPDIR to another disk."
            )
            yield Finding("disk", "warn", text, todo)
        elif usage.free < _LITTLE_DISK:
            todo = "Enough to start with; `python -m jobs plan INPUT` forecasts how much a run writes."
            yield Finding("disk", "warn", text, todo)
        else:
            yield Finding("disk", "ok", text)


def _existing(path: Path) -> Path:
    """The folder, or its nearest existing parent."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Shared memory, through which Ray passes decoded images between processes."""
    if not folder.is_dir():
        yield Finding("/dev/shm", "ok", "none on this system, not needed")
        return
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / _GIB:.2f} of {usage.total / _GIB:.2f} GiB free"
    if usage.free < _LITTLE_SHARED:
        yield Finding(
            "/dev/shm",
            "warn",
            text,
            "Ray falls back to disk, which is slower. Start the container with --shm-size=2g (Kubernetes: an emptyDir "
            "with medium: Memory at /dev/shm).",
        )
    else:
        yield Finding("/dev/shm", "ok", text)


def gpu() -> Iterator[Finding]:
    """GPUs, as their driver reports them; `torch_checks` tests whether PyTorch can use them."""
    try:
        gpus = read_gpus()
    except (GpuDriverError, ValueError) as error:
        yield Finding(
            "gpu",
            "fail",
            f"nvidia-smi is installed but fails: {error}",
            "Install or reload the NVIDIA driver, or start the container with --gpus all. To caption on CPUs "
            "anyway: --set runtime.device=cpu",
        )
        return
    if not gpus:
        yield Finding("gpu", "ok", "none: captioning runs on CPUs")
        return
    names: dict[str, int] = {}
    for each in gpus:
        about = f"{each.name} with {each.memory / 1024:.0f} GiB"
        names[about] = names.get(about, 0) + 1
    text = ", ".join(f"{count} × {name}" for name, count in names.items()) + f", driver {gpus[0].driver}"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    crowded = [each for each in gpus if each.memory and each.memory - each.memory_used < 2048]
    if hidden in ("", "-1"):
        yield Finding("gpu", "warn", f"{text}, hidden by CUDA_VISIBLE_DEVICES={hidden!r}", "Unset it to use them.")
    elif crowded:
        taken = ", ".join(str(each.index) for each in crowded)
        todo = "Other programs use it (see nvidia-smi): stop them, or select other GPUs with CUDA_VISIBLE_DEVICES."
        yield Finding("gpu", "warn", f"{text}; less than 2 GiB free on GPU {taken}", todo)
    else:
        yield Finding("gpu", "ok", text)
