"""A served captioner's own process, and its dedicated cores."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from captioning.captioner import load_captioner
from captioning.errors import UnfinishedError
from jobs.cores import affinity, set_affinity, try_lock, usable_cores
from jobs.serving.caption_process import CaptionProcess
from jobs.serving.cores import CoreAllocation, allocate_cores
from jobs.serving.request_errors import RequestError
from jobs.serving.settings import ServeSettings

SETTINGS = ServeSettings()


@pytest.fixture(scope="module")
def process(tiny_captioner: Path) -> Iterator[CaptionProcess]:
    made = CaptionProcess(str(tiny_captioner), SETTINGS, 1, (min(usable_cores()),))
    yield made
    made.close()


def pictures(side: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def pid_of(process: CaptionProcess) -> int:
    assert process._child is not None
    return process._child.pid


def test_it_captions_like_a_captioner_in_this_process(process: CaptionProcess, tiny_captioner: Path) -> None:
    here = load_captioner(str(tiny_captioner))
    assert process.about["name"] == here.name
    assert process.preprocess == here.preprocess.settings
    pixels = pictures(here.preprocess.settings.size, 3)
    found = process.caption(pixels, {"beam_size": 2, "num_captions": 2}, attention=False)
    expected = here.caption_pixels(pixels, beam_size=2, num_captions=2)
    assert [each["caption"] for each in found] == [each.text for each in expected]
    assert [len(each["alternatives"]) for each in found] == [2, 2, 2]
    assert all(each["weights"] is None for each in found)


def test_a_wrong_request_is_a_request_error(process: CaptionProcess) -> None:
    before = pid_of(process)
    with pytest.raises(RequestError, match="beam_size") as refused:
        process.caption(pictures(process.preprocess.size, 1), {"beam_size": 1, "num_captions": 3}, attention=False)
    assert (refused.value.status, refused.value.error_class) == (422, "settings")
    assert pid_of(process) == before


def test_an_internal_error_is_raised(process: CaptionProcess) -> None:
    with pytest.raises(RuntimeError, match="Error: "):
        process.caption(np.zeros(3, np.uint8), {}, attention=False)


def test_a_killed_process_is_replaced(process: CaptionProcess) -> None:
    pixels = pictures(process.preprocess.size, 2)
    expected, before = process.caption(pixels, {}, attention=False), pid_of(process)
    os.kill(before, signal.SIGKILL)
    assert process.caption(pixels, {}, attention=False) == expected
    assert pid_of(process) != before


def test_images_that_kill_it_twice_are_refused(process: CaptionProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    start_child = process._start_child

    def start_and_die() -> dict[str, object]:
        about = start_child()
        os.kill(pid_of(process), signal.SIGKILL)
        return about

    monkeypatch.setattr(process, "_start_child", start_and_die)
    os.kill(pid_of(process), signal.SIGKILL)
    with pytest.raises(RequestError, match="failed twice") as refused:
        process.caption(pictures(process.preprocess.size, 1), {}, attention=False)
    assert (refused.value.status, refused.value.retry_after) == (503, 10)
    assert process.lost
    monkeypatch.undo()
    assert len(process.caption(pictures(process.preprocess.size, 1), {}, attention=False)) == 1
    assert not process.lost


def test_a_captioner_that_cannot_be_loaded_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedError, match="nowhere"):
        CaptionProcess(str(tmp_path / "nowhere"), SETTINGS, 1)


def test_it_is_pinned_to_its_cores(process: CaptionProcess) -> None:
    assert psutil.Process(pid_of(process)).cpu_affinity() == [min(usable_cores())]


@pytest.mark.parametrize(
    ("cores", "processes", "threads", "expected"),
    [
        ([0], 1, "auto", CoreAllocation(1)),
        ([0, 1], 1, "auto", CoreAllocation(1, (1,), (0,))),
        ([0, 1], 1, 2, CoreAllocation(2)),
        ([0, 1], 2, "auto", CoreAllocation(1)),
        ([4, 5, 6, 7], 1, "auto", CoreAllocation(3, (5, 6, 7), (4,))),
        ([4, 5, 6, 7], 2, "auto", CoreAllocation(1, (6, 7), (4, 5))),
        (range(16), 2, "auto", CoreAllocation(6, tuple(range(4, 16)), tuple(range(4)))),
        (range(16), 1, 1, CoreAllocation(1, (15,), tuple(range(15)))),
    ],
)
def test_everything_else_has_a_quarter_of_the_cores(cores, processes, threads, expected) -> None:
    assert allocate_cores(cores, processes, threads, dedicated=True) == expected


def test_where_cores_are_shared_captioners_have_threads_for_all_of_them() -> None:
    assert allocate_cores(range(8), 2, "auto", dedicated=False) == CoreAllocation(4)


def test_affinity_is_restored() -> None:
    before = usable_cores()
    with affinity([min(before)]):
        assert usable_cores() == {min(before)}
    assert usable_cores() == before
    set_affinity(())
    assert usable_cores() == before


def test_a_lock_is_exclusive_until_it_is_released() -> None:
    with try_lock("test") as first, try_lock("test") as second, try_lock("other-test") as other:
        assert (first, second, other) == (True, False, True)
    with try_lock("test") as again:
        assert again
