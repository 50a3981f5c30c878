"""Kills a process at a commit point of a run. On the PYTHONPATH of a run under test it is in all of its processes.

CHAOS_ORDERS names a folder. A file `POINT.NUMBER.TARGET` in it is an order: whoever comes to the point and takes the
lowest number away kills TARGET with SIGKILL (`nobody`: the point passes). What was killed is added to `struck`.
Parts are of CHAOS_SHARDS_PER_PART shards, so that a small archive has several.
"""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.patching import patch_on_import

#: (file below OUTPUT, operation) → the points before and after it.
POINTS = [
    (r"_run/index/segment-\d+\.json", "create", "before the index counts", "the index counts"),
    (r"_run/staging/shard-.*", "write", "before staging", "staged"),
    (r"part-.*", "create", "before the fold", "folded"),
    (r"_run/staging/shard-.*", "delete", "", "cleaned"),
    (r"_run/retry/plan.json", "write", "before the plan", "planned"),
    (r"_run/retry/\w+-shard-.*", "write", "before staging again", "staged again"),
    (r"part-.*", "write", "before the rewrite", "rewritten"),
    (r"_run/index/segment-.*\.parquet", "write", "", "amended"),
    (r"_run/retry/\w+-part-.*", "delete", "", "done again"),
    (r"_run/retry/plan.json", "delete", "", "forgotten"),
]


def reach(orders: Path, point: str) -> None:
    """Carry out the first order for this point, if there is one."""
    for order in sorted(orders.glob(f"{point}.*.*")):
        try:
            order.unlink()
        except FileNotFoundError:
            continue  # another process was first
        strike(orders, point, order.suffix[1:])
        return


def strike(orders: Path, point: str, target: str) -> None:
    """Kill the target, and give its death the time to take effect before anything else happens here."""
    if target == "nobody":
        return
    pid = find(target)
    with open(orders / "struck", "a") as file:
        file.write(f"{point}\t{target}\t{pid}\n")
    if pid is not None:
        os.kill(pid, signal.SIGKILL)
        if target in ("driver", "raylet"):
            time.sleep(0.5)


def find(target: str) -> int | None:
    """The process id of a kind of process of this run."""
    driver = int(os.environ["CHAOS_DRIVER"]) if "CHAOS_DRIVER" in os.environ else None
    raylets = [pid for pid in children(driver) if "raylet" in title(pid).partition(" ")[0]]
    if target == "driver":
        return driver
    if target == "raylet":
        return raylets[0] if raylets else None
    local = [pid for pid in children(driver) if "jobs.runners.shard_worker" in title(pid)]
    if local:
        found = local if target == "worker" else [pid for worker in local for pid in children(worker)]
        return found[0] if found else None
    kinds = {"worker": ("CaptionShard",), "decode": ("DecodeShard", "IDLE")}[target]
    workers = [pid for raylet in raylets for pid in children(raylet)]
    if target == "worker" and os.getpid() in workers and "CaptionShard" in title(os.getpid()):
        return os.getpid()
    found = [pid for kind in kinds for pid in workers if kind in title(pid)]
    return found[0] if found else None


def children(parent: int | None) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.name))
        except (OSError, ValueError, IndexError):
            continue
    return found


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def hook_files(module: Any) -> None:
    """Make `LocalFiles` come to the points."""
    orders = Path(os.environ["CHAOS_ORDERS"])
    for name in ("write", "create", "delete"):
        setattr(module.LocalFiles, name, hooked(orders, name, getattr(module.LocalFiles, name)))


def hooked(orders: Path, name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
    points = [(re.compile(r".*/out[^/]*/" + file), what, before, after) for file, what, before, after in POINTS]

    def run(self: Any, path: str, *arguments: Any) -> Any:
        met = [(before, after) for file, what, before, after in points if what == name and file.fullmatch(path)]
        for before, _ in met:
            if before:
                reach(orders, before)
        result = operation(self, path, *arguments)
        for _, after in met:
            reach(orders, after)
        return result

    return run


def cut_parts(module: Any) -> None:
    module.SHARDS_PER_PART = int(os.environ["CHAOS_SHARDS_PER_PART"])


#: Modules and what is changed in them.
CHANGES = {"captioning.local_files": hook_files, "captioning.run.layout": cut_parts}


if "CHAOS_ORDERS" in os.environ:
    # The driver is the first process that has the hook; those that it starts are told which one it is.
    os.environ.setdefault("CHAOS_DRIVER", str(os.getpid()))
    patch_on_import(CHANGES)
