"""The steps that `scale` measures: `python -m tests.benchmarks.scale_steps STEP FOLDER SIZE` prints figures in JSON.

Everything except pixels and the model is measured. `SIZE` is in images, that of `pipeline` in shards.
"""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captioning.run.layout import RunLayout
from captioning.storage import Location
from tests.benchmarks.made_archive import SHARD_SIZE, IdleDecode, MadeSource, load_idle, write_made_part
from tests.benchmarks.measure import family


def index(work: Path, images: int) -> dict[str, Any]:
    """Write the index of the synthetic archive."""
    from captioning.run.index import write_segment

    found = write_segment(_layout(work), [MadeSource.of(images)], shard_size=SHARD_SIZE).commit()
    files = list((work / "run" / "_run" / "index").iterdir())
    return {"shards": found.shards_total, "files": len(files), "bytes": sum(file.stat().st_size for file in files)}


def pending(work: Path, images: int) -> dict[str, Any]:
    """Find the pending shards."""
    from captioning.run.index import Index
    from captioning.run.staging import pending_shards

    return {"pending": len(pending_shards(_layout(work), Index.load(_layout(work))))}


def table(work: Path, images: int) -> dict[str, Any]:
    """Write the table, as if all were done."""
    from captioning.run.index import Index

    found = Index.load(_layout(work))
    for part in found.ranges():
        write_made_part(found.layout, found, part)
    (work / "run" / "_run" / "run.json").touch()
    return {"bytes": sum(file.stat().st_size for file in (work / "run").glob("part-*"))}


def verify(work: Path, images: int) -> dict[str, Any]:
    """Verify the table."""
    from captioning.run.verify import verify as prove

    verdict = prove(_layout(work))
    assert verdict.ok, verdict.problems
    return {"rows": verdict.rows}


def growth(work: Path, images: int) -> dict[str, Any]:
    """List the archive again with a thousandth more images, and find them."""
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
    """Resume a run of which 99% is done, until the first new shard is written (its images do not exist)."""
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
    """A whole run over this many shards without decoding or captioning: a shard's cost, and the driver's memory."""
    import jobs.driving.caption_run as job
    import jobs.driving.make_work
    import jobs.runners.pipeline
    import jobs.runners.ray_runner as runner
    from jobs.caption_settings import CaptionSettings, OutputSettings, RuntimeSettings
    from jobs.ray_session import ray_session

    output = work / f"pipeline-{shards}"
    shutil.rmtree(output, ignore_errors=True)
    watch = _Watch()
    replaced: list[tuple[Any, str, Any]] = [
        (job, "open_inputs", lambda *_: [MadeSource.of(shards * SHARD_SIZE)]),
        (jobs.driving.make_work, "LoadCaptioner", load_idle),
        (runner, "caption_shards", watch.over(runner.caption_shards)),
        (job, "fold", watch.until(job.fold)),
        (jobs.runners.pipeline, "DecodeShard", IdleDecode),
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
    """Observes a run from the start of its pipeline until everything is folded."""

    def __init__(self) -> None:
        self.begun = 0.0
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.memory: list[int] = []
        self.ended = 0.0

    def over(self, caption_shards: Any) -> Any:
        """`caption_shards`, recording the time at every shard, and CPU and memory at each hundredth."""

        def watched(*args: Any) -> Iterator[Any]:
            self.begun = time.monotonic()
            self._look()
            for count, result in enumerate(caption_shards(*args)):
                self.times.append(time.monotonic())
                if count % 100 == 0:
                    self._look()
                yield result

        return watched

    def until(self, fold: Any) -> Any:
        """`fold`, recording the time afterwards, when the table is complete in short and long runs alike."""

        def watched(*args: Any, **options: Any) -> Any:
            outcome = fold(*args, **options)
            self.ended = time.monotonic()
            self._look()
            return outcome

        return watched

    def _look(self) -> None:
        self.cpu.append(sum(_cpu_seconds(process) for process in family(os.getpid())))
        self.memory.append(_anonymous_bytes())

    def figures(self) -> dict[str, Any]:
        gaps = sorted(b - a for a, b in zip(self.times, self.times[1:], strict=False))
        return {
            "shards": len(self.times),
            "run_seconds": self.ended - self.begun,
            "run_cpu_seconds": self.cpu[-1] - self.cpu[0],
            "first_shard_seconds": self.times[0] - self.begun,
            "longest_gaps": [round(gap, 2) for gap in gaps[-12:]],
            "driver_bytes_most": max(self.memory),
            "driver_bytes": self.memory[:: max(1, len(self.memory) // 40)],
        }


def _cpu_seconds(process: int) -> float:
    """CPU-seconds of a process and its ended children."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _anonymous_bytes() -> int:
    """This process's own memory, without Ray's shared objects and files."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    return 0


def _layout(work: Path) -> RunLayout:
    return RunLayout(Location.parse(str(work / "run")))


#: In the order in which they run: each uses what the earlier ones left in the folder.
STEPS = {step.__name__: step for step in (index, pending, table, verify, growth, sample, resume, pipeline)}


def take_step(name: str, work: Path, size: int) -> dict[str, Any]:
    """Run a step in this process; its figures, and its time and memory."""
    begin, cpu = time.monotonic(), time.process_time()
    figures = STEPS[name](work, size)
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": time.monotonic() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": used.ru_maxrss * 1024,
    } | figures


if __name__ == "__main__":
    step, folder, count = sys.argv[1:]
    print(json.dumps(take_step(step, Path(folder), int(count))))
