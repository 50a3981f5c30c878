"""Images that crash, fill or hang the process that decodes them, and processes that are killed externally."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from captioning.config import build
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.errors import ImageError, SettingsError, UnfinishedError
from jobs.workers import decode_process
from jobs.workers.child_process import ChildDiedError, ChildProcess
from jobs.workers.decode_process import Decoder, DecodeSettings
from tests.jobs.archive import encode, picture
from tests.jobs.poison import ORDERS, obedient_decoders, poisoned, slow

SETTINGS = PreprocessSettings(size=16)
GOOD = encode(picture(1), "JPEG")


@pytest.fixture
def decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Decoder]:
    monkeypatch.syspath_prepend(obedient_decoders(tmp_path / "site"))
    monkeypatch.setattr(decode_process, "_FIRST_PAUSE", 0.01)
    decoder = Decoder(SETTINGS, DecodeSettings(timeout_s=5.0, memory_mb=300))
    yield decoder
    decoder.close()


def refused(decoder: Decoder, data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decoder.decode(data)
    return caught.value


def test_pixels_are_those_of_this_process(decoder: Decoder) -> None:
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF")):
        data = encode(picture(number), kind)
        found, seconds = decoder.decode(data)
        expected = Preprocess(SETTINGS).from_bytes(data)
        assert np.array_equal(found.pixels, expected.pixels)
        assert (found.width, found.height) == (expected.width, expected.height) == (40, 30)
        assert seconds > 0


def test_reasons_come_through(decoder: Decoder) -> None:
    assert refused(decoder, b"").error_class == "empty"
    assert refused(decoder, b"only words").error_class == "not_an_image"
    assert refused(decoder, GOOD[:200]).error_class == "truncated"


@pytest.mark.parametrize(("order", "error_class"), [*ORDERS.items(), ("kill", "crash")])
def test_a_harmful_image_is_an_error_and_the_next_one_is_decoded(
    decoder: Decoder, order: str, error_class: str
) -> None:
    decoder.decode(GOOD)
    assert refused(decoder, poisoned(order)).error_class == error_class
    assert decoder.decode(GOOD)[0].width == 40


def test_a_process_killed_externally_blames_no_image(decoder: Decoder) -> None:
    """Every second process is killed from outside while it decodes, in isolation too."""
    made: list[int] = []
    start = decoder._start_child

    def watched() -> ChildProcess:
        child = start()
        made.append(child.pid)
        if len(made) % 4:
            threading.Timer(0.1, kill, (child.pid,)).start()
        return child

    decoder._start_child = watched  # type: ignore[method-assign]
    for number in range(3):
        assert decoder.decode(slow(0.5, number))[0].width == 40
        decoder.close()
    assert len(made) >= 9


def test_a_single_crash_is_not_enough(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once by itself (a fault of what came before it, say), then well: no error."""
    asked = itertools.count()
    request = decoder._request

    def fails_twice(data: bytes) -> object:
        if next(asked) < 2:
            raise ChildDiedError(-signal.SIGSEGV)
        return request(data)

    monkeypatch.setattr(decoder, "_request", fails_twice)
    assert decoder.decode(GOOD)[0].width == 40


def test_memory_left_by_other_images_blames_no_image(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = itertools.count()
    request = decoder._request

    def full_once(data: bytes) -> object:
        if next(asked) < 1:
            raise ImageError("memory", "full")
        return request(data)

    monkeypatch.setattr(decoder, "_request", full_once)
    assert decoder.decode(GOOD)[0].width == 40


def test_a_process_that_does_not_start_blames_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    die = "import os, sys\nif 'jobs.workers.decode_child' in sys.orig_argv: os._exit(3)\n"
    (tmp_path / "sitecustomize.py").write_text(die)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(decode_process, "_FIRST_PAUSE", 0.0)
    with pytest.raises(UnfinishedError, match="could not be started: the process ended with exit code 3"):
        Decoder(SETTINGS, DecodeSettings()).decode(GOOD)


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    """Killed outright, with an image under way that never ends."""
    site = obedient_decoders(tmp_path / "site")
    (tmp_path / "poison.jpg").write_bytes(poisoned("sleep"))
    program = (
        "import sys; from jobs.workers.decode_process import *\n"
        "from captioning.data.preprocess import PreprocessSettings\n"
        "decoder = Decoder(PreprocessSettings(size=16), DecodeSettings())\n"
        f"decoder.decode({GOOD!r}); print(decoder._child.pid, flush=True)\n"
        "decoder.decode(open(sys.argv[1], 'rb').read())"
    )
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([site, str(root)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "poison.jpg")], stdout=subprocess.PIPE, env=environment, cwd=root
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    while is_running(child):
        time.sleep(0.02)


def test_ctrl_c_is_left_to_the_parent_from_the_start() -> None:
    """A terminal sends it to all processes, also to one that is still being started."""
    start = Decoder(SETTINGS, DecodeSettings())._start
    with ChildProcess("jobs.workers.decode_child") as child:
        for _ in range(20):
            os.kill(child.pid, signal.SIGINT)
            time.sleep(0.02)
        child.begin([start])
        os.kill(child.pid, signal.SIGINT)
        assert child.request([GOOD], seconds=60)
    # This process hears it again.
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, set())


def test_an_image_larger_than_a_pipe_goes_through(decoder: Decoder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1200, 1500, 3), dtype=np.uint8)
    from PIL import Image

    data = encode(Image.fromarray(noise), "PNG")
    assert len(data) > 5_000_000
    assert decoder.decode(data)[0].width == 1500


def test_limits_are_checked() -> None:
    with pytest.raises(SettingsError, match="timeout_s"):
        build(DecodeSettings, {"timeout_s": 0.0}, where="here")


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0].startswith(("Z", "X"))
    return False
