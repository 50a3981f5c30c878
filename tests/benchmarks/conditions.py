"""What the figures depend on besides the code: processor, memory, load, versions, revision."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = (
    "torch", "ray", "transformers", "pillow", "pyarrow", "numpy", "onnxruntime", "openvino", "simplejpeg", "daft"
)  # fmt: skip


def conditions(cores: int) -> dict[str, Any]:
    """The current conditions."""
    return {
        "cpu": _cpu_name(),
        "cores": cores,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load_average_before": os.getloadavg(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _revision() -> str | None:
    """The git revision of the measured code; None without history."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    # Virtual machines often hide the name; family and model identify it.
    numbers = " ".join(f"{name} {facts[name]}" for name in ("cpu family", "model") if name in facts)
    return f"{facts.get('model name', platform.processor() or platform.machine())} ({numbers})" if facts else "unknown"
