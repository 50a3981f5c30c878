"""Images on which a captioner runs out of memory, fails, hangs or crashes. Without Ray."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from captioning.data.preprocess import PreprocessSettings
from captioning.errors import ImageError, UnfinishedError
from captioning.run.index import write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import open_sources
from captioning.storage import Location, StorageSettings
from jobs.workers import isolate
from jobs.workers.attempts import Attempts
from jobs.workers.caption_shard import CaptionShard
from jobs.workers.child_process import ChildProcess
from jobs.workers.decode_shard import decode_entries, pixels_of
from jobs.workers.isolate import Isolation
from jobs.workers.micro_batches import MicroBatches, is_out_of_memory
from tests.jobs.archive import write_photos
from tests.jobs.captioners import Moody, pictures


def classes(found: list) -> list[str | None]:
    return [one.error_class if isinstance(one, ImageError) else None for one in found]


def test_running_out_of_memory_halves_the_micro_batch_for_the_rest_of_the_run() -> None:
    captioner = Moody(most=5)
    batches = MicroBatches(captioner, 16)
    found = batches.caption(pictures(40))
    assert [one.text for one in found] == [f"brightness {image.mean():.3f}" for image in pictures(40)]
    assert captioner.batches == [16, 8, *[4] * 10]
    assert batches.size == 4
    batches.caption(pictures(8))
    assert captioner.batches[-2:] == [4, 4]


def test_an_image_that_needs_too_much_memory_alone_is_a_row() -> None:
    found = MicroBatches(Moody(greedy=[5]), 8).caption(pictures(9))
    assert classes(found) == [None] * 5 + ["memory"] + [None] * 3


def test_a_captioner_that_is_always_out_of_memory_ends_the_run() -> None:
    with pytest.raises(UnfinishedError, match="fails on every image.*runtime.batch_size"):
        MicroBatches(Moody(most=0), 8).caption(pictures(3))


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] . DefaultCPUAllocator: not enough memory"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


def test_images_that_crash_or_hang_the_process_are_found() -> None:
    captioner = Moody(deadly=[3], hated=[6], hanging=[9])
    found = Isolation(captioner, 4, hang_seconds=3.0).caption(pictures(11))
    expected: list[str | None] = [None] * 11
    expected[3], expected[6], expected[9] = "crash", "model", "hang"
    assert classes(found) == expected
    good = [one.text for one in found if not isinstance(one, ImageError)]
    marks = [n for n in range(11) if expected[n] is None]
    assert good == [f"brightness {pictures(11)[n].mean():.3f}" for n in marks]


def test_a_process_killed_externally_blames_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_FIRST_PAUSE", 0.0)
    isolation = Isolation(Moody(), 4, hang_seconds=60.0)
    start = isolation._start_child
    made = []

    def killed_as_it_begins() -> ChildProcess:
        child = start()
        made.append(child)
        if len(made) % 4:
            os.kill(child.pid, 9)
        return child

    monkeypatch.setattr(isolation, "_start_child", killed_as_it_begins)
    assert classes(isolation._bisect(pictures(4))) == [None] * 4
    isolation._close()
    assert len(made) >= 8, "images were not met alone"


def test_an_image_that_always_kills_its_process_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolate, "_FIRST_PAUSE", 0.0)
    assert classes(Isolation(Moody(killing=[1]), 4, 60.0).caption(pictures(2))) == [None, "crash"]


def test_a_captioner_that_always_crashes_ends_the_run() -> None:
    with pytest.raises(UnfinishedError, match="fails on every image: .*exit code 7"):
        Isolation(Moody(deadly=range(256)), 4, 60.0).caption(pictures(2))


def fails_to_load() -> Moody:
    raise OSError("no weights here")


def test_a_captioner_that_cannot_be_loaded_ends_the_run() -> None:
    with pytest.raises(UnfinishedError, match="could not be loaded: OSError: no weights here"):
        Isolation(fails_to_load, 4, 60.0).caption(pictures(2))


def begin_and_die(attempts: Attempts, key: str) -> None:
    program = (
        "import os; from jobs.workers.attempts import Attempts; "
        f"Attempts({attempts.token!r}).begin({key!r}); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], check=False)


def test_only_dead_processes_count_and_only_until_the_work_is_done(tmp_path: Path) -> None:
    attempts = Attempts(tmp_path.name)
    assert attempts.begin("shard-7") == 0
    assert attempts.begin("shard-7") == 0
    for _ in range(2):
        begin_and_die(attempts, "shard-7")
    begin_and_die(attempts, "shard-77")
    assert attempts.begin("shard-7") == 2
    attempts.end("shard-7")
    assert attempts.begin("shard-7") == 0
    assert attempts.begin("shard-77") == 1
    attempts.end("shard-7")
    attempts.end("shard-77")
    assert not attempts._folder.exists()


def test_a_shard_at_which_two_processes_died_is_captioned_in_isolation(tmp_path: Path) -> None:
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    sources = open_sources([str(write_photos(tmp_path / "photos", 5))])
    index = write_segment(layout, sources, shard_size=5).commit()
    settings = PreprocessSettings(size=8)
    decoded = decode_entries(0, index.rows(index.shard(0)), settings, StorageSettings())
    poison = int(pixels_of(decoded)[2, 0, 0, 0])
    attempts = Attempts(f"{tmp_path.name}-{os.getpid()}")
    for _ in range(2):
        begin_and_die(attempts, "shard-0")
    actor = CaptionShard(Moody(deadly=[poison]), IndexShardIO(index), 4, attempts, 60.0)
    [result] = actor(decoded).to_pylist()
    assert result["error_classes"] == '{"crash": 1}'
    assert attempts.begin("shard-0") == 0
    attempts.end("shard-0")


def test_begin_and_end_may_overlap() -> None:
    attempts = Attempts(f"race-{os.getpid()}")

    def work(key: str) -> int:
        return sum(attempts.begin(key) + (attempts.end(key) or 0) for _ in range(500))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, "abcd")) == [0, 0, 0, 0]
    assert not attempts._folder.exists()


def test_markers_of_killed_executions_are_deleted_eventually(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    old, recent = Attempts("old"), Attempts("recent")
    for attempts in (old, recent):
        attempts.begin("shard-7")
    eight_days_ago = time.time() - 8 * 24 * 3600
    os.utime(old._folder, (eight_days_ago, eight_days_ago))
    Attempts("new").begin("shard-7")
    assert not old._folder.exists()
    assert recent._folder.exists()


def test_a_captioner_whose_process_ends_while_it_loads_is_one_error(tmp_path: Path) -> None:
    attempts = Attempts(f"{tmp_path.name}-{os.getpid()}")
    for _ in range(4):
        begin_and_die(attempts, "load")
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    sources = open_sources([str(write_photos(tmp_path / "photos", 1))])
    index = write_segment(layout, sources, shard_size=5).commit()
    actor = CaptionShard(Moody(), IndexShardIO(index), 4, attempts)
    with pytest.raises(UnfinishedError, match="died 4 times while loading"):
        actor(decode_entries(0, index.rows(index.shard(0)), PreprocessSettings(size=8), StorageSettings()))
    attempts.end("load")


def test_a_call_that_hangs_ends_the_process() -> None:
    program = (
        "from jobs.workers.micro_batches import MicroBatches; from tests.jobs.captioners import Moody, pictures\n"
        "MicroBatches(Moody(hanging=[1]), 4, 0.5).caption(pictures(3))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).resolve().parents[2], check=False)
    assert done.returncode == 70
