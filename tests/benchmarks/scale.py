"""What the run's bookkeeping costs at ten million images and more: seconds, CPU-seconds and memory of each step.

    python -m tests.benchmarks.scale                    a million images, and 250, 1,000 and 2,500 shards
    python -m tests.benchmarks.scale --full             ten million, and 1,000, 5,000 and 20,000 shards

Every step is a process of its own. There are no pixels and no model: what is measured is everything else.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from captioning.run.layout import RunLayout
from captioning.storage import Location
from tests.benchmarks.made_archive import SHARD_SIZE, IdleDecode, MadeSource, load_idle, write_made_part
from tests.benchmarks.measure import family

MIB = 1 << 20
_MODULE = "tests.benchmarks.scale"


def index(work: Path, images: int) -> dict[str, Any]:
    """Write the index of the made archive."""
    from captioning.run.index import write_segment

    found = write_segment(_layout(work), [MadeSource.of(images)], shard_size=SHARD_SIZE).commit()
    files = list((work / "run" / "_run" / "index").iterdir())
    return {"shards": found.shards_total, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def pending(work: Path, images: int) -> dict[str, Any]:
    """Find what there is to do."""
    from captioning.run.index import Index
    from captioning.run.table import pending_shards

    return {"pending": len(pending_shards(_layout(work), Index.load(_layout(work))))}


def table(work: Path, images: int) -> dict[str, Any]:
    """Make the table, as if all were done."""
    from captioning.run.index import Index

    found = Index.load(_layout(work))
    for part in found.ranges():
        write_made_part(found.layout, found, part)
    (work / "run" / "_run" / "run.json").touch()
    return {"bytes": sum(file.stat().st_size for file in (work / "run").glob("part-*"))}


def verify(work: Path, images: int) -> dict[str, Any]:
    """Prove the table."""
    from captioning.run.verify import verify as prove

    verdict = prove(_layout(work))
    assert verdict.ok, verdict.problems
    return {"rows": verdict.rows}


def growth(work: Path, images: int) -> dict[str, Any]:
    """List an archive again that has a thousandth more images, and find them."""
    from captioning.run.growth import grow
    from captioning.run.index import Index

    found = grow(Index.load(_layout(work)), [MadeSource.of(images + images // 1000)], shard_size=SHARD_SIZE)
    assert found.pending is not None
    found.pending.discard()
    return {"new": found.new, "changed": found.changed, "vanished": found.vanished}


def sample(work: Path, images: int) -> dict[str, Any]:
    """Write the index of a thousandth of the archive, from all over."""
    from captioning.run.index import write_segment
    from captioning.run.selection import Selection

    selection = Selection(sample=images // 1000, where="size_bytes > 30000 and uri like '%.jpg'")
    found = write_segment(RunLayout(Location.parse(str(work / "sample"))), [MadeSource.of(images)], selection=selection)
    return {"rows": found.rows}


def resume(work: Path, images: int) -> dict[str, Any]:
    """Go on with a run of which 99% is done, until the first new shard is written, of images that are not there."""
    from captioning.run.index import Index

    output, archive = work / "run", work / "archive"
    command = [sys.executable, "-m", "jobs", "caption", str(archive), "-o", str(output), "--set", "runtime.device=cpu"]
    first = [*command[:-4], "-o", str(work / "one"), *command[-2:], "--set", f"output.shard_size={SHARD_SIZE}"]
    (archive).mkdir(exist_ok=True)
    (archive / "0.jpg").write_bytes(b"no image")
    subprocess.run([*first, "--set", "errors.max_fraction=1"], check=True, capture_output=True)
    shutil.copy(work / "one" / "_run" / "run.json", output / "_run" / "run.json")
    found = Index.load(_layout(work))
    left = 0
    for part in reversed(found.ranges()):
        _layout(work).part(part).delete()
        left += len(part.numbers)
        if left >= found.shards_total / 100:
            break
    staging = output / "_run" / "staging"
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (staging.is_dir() and any(staging.iterdir())):
            assert process.poll() is None, f"it ended with code {process.returncode}"
            time.sleep(0.05)
        seconds = time.monotonic() - begin
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
    return {"pending": left, "seconds": seconds}


def pipeline(work: Path, shards: int) -> dict[str, Any]:
    """A whole run over so many shards in which nobody decodes or captions: what one costs, and the driver's memory."""
    import jobs.caption_run as job
    import jobs.pipeline
    from jobs.caption_settings import CaptionSettings, OutputSettings, RuntimeSettings
    from jobs.ray_session import ray_session

    output = work / f"pipeline-{shards}"
    shutil.rmtree(output, ignore_errors=True)
    watch = _Watch()
    replaced: list[tuple[Any, str, Any]] = [
        (job, "open_sources", lambda *_: [MadeSource.of(shards * SHARD_SIZE)]),
        (job, "LoadCaptioner", load_idle),
        (job, "caption_shards", watch.over(job.caption_shards)),
        (jobs.pipeline, "DecodeShard", IdleDecode),
    ]
    for module, name, value in replaced:
        setattr(module, name, value)
    settings = CaptionSettings(output=OutputSettings(shard_size=SHARD_SIZE), runtime=RuntimeSettings(device="cpu"))
    with ray_session():
        outcome = job.caption_archive(job.Request(("made",), str(output), None, settings))
    assert outcome.ok, outcome.verdict.problems
    shutil.rmtree(output)
    return watch.figures()


class _Watch:
    """Looks at a run from its first finished shard to its last."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.memory: list[int] = []

    def over(self, caption_shards: Any) -> Any:
        """`caption_shards` with a look at the clock at every shard, and at CPU and memory at each hundredth."""

        def watched(*args: Any) -> Iterator[Any]:
            ended = threading.Event()
            for count, result in enumerate(caption_shards(*args)):
                self.times.append(time.monotonic())
                if count % 100 == 0:
                    self._look()
                yield result
            self._look()
            ended.set()

        return watched

    def _look(self) -> None:
        self.cpu.append(sum(_cpu_seconds(process) for process in family(os.getpid())))
        self.memory.append(_anonymous_bytes())

    def figures(self) -> dict[str, Any]:
        count = len(self.times) - 1
        gaps = sorted(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        return {
            "shards": len(self.times),
            "seconds_a_shard": (self.times[-1] - self.times[0]) / count,
            "cpu_seconds_a_shard": (self.cpu[-1] - self.cpu[0]) / count,
            "longest_gaps": [round(gap, 2) for gap in gaps[-12:]],
            "driver_bytes_first": self.memory[0],
            "driver_bytes_most": max(self.memory),
        }


def _cpu_seconds(process: int) -> float:
    """What a process and those of its children that have ended have taken."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _anonymous_bytes() -> int:
    """The memory of this process that is its own: no shared objects of Ray's, no files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def _layout(work: Path) -> RunLayout:
    return RunLayout(Location.parse(str(work / "run")))


STEPS = {step.__name__: step for step in (index, pending, table, verify, growth, sample, resume, pipeline)}
#: Steps that only make what the others need.
_UNMEASURED = {"table"}


def run_step(name: str, work: Path, size: int) -> dict[str, Any]:
    """Run a step in a process of its own; its figures."""
    result = work / f"{name}-{size}.json"
    subprocess.run(
        [sys.executable, "-m", _MODULE, "--step", name, "--size", str(size), "--work", str(work)], check=True
    )
    figures: dict[str, Any] = json.loads(result.read_text())
    return figures


def take_step(name: str, work: Path, size: int) -> None:
    """Do a step here, and write down what it took."""
    begin, cpu = time.monotonic(), time.process_time()
    figures = STEPS[name](work, size)
    figures = {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    } | figures
    (work / f"{name}-{size}.json").write_text(json.dumps(figures))


def measure_scale(work: Path, images: int, shards: Sequence[int]) -> dict[str, Any]:
    """Every step; figures by step, those of the pipeline by shards."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        steps = {}
        for name in STEPS:
            if name != "pipeline":
                steps[name] = run_step(name, work, images)
                print(name, steps[name], flush=True)
        runs = []
        for count in shards:
            runs.append(run_step("pipeline", work, count))
            print(runs[-1], flush=True)
    finally:
        shutil.rmtree(work)
    return {"images": images, "steps": {n: s for n, s in steps.items() if n not in _UNMEASURED}, "pipeline": runs}


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__.split("\n")[0])
    parser.add_argument("--full", action="store_true", help="ten million images, up to 20,000 shards: an hour")
    parser.add_argument("--work", type=Path, default=Path("build/bench/work/scale"))
    parser.add_argument("-o", "--output", type=Path, default=Path("build/bench/scale.json"))
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        args.work.mkdir(parents=True, exist_ok=True)
        take_step(args.step, args.work, args.size)
        return
    figures = measure_scale(args.work, *FULL if args.full else SMALL)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(figures, indent=2) + "\n")


SMALL = (1_000_000, (250, 1_000, 2_500))
FULL = (10_000_000, (1_000, 5_000, 20_000))

if __name__ == "__main__":
    main()
