"""Every animal of the zoo has its row; none crashes, hangs or fills memory; what Pillow reads is captioned."""

import warnings
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captioning.captioner_info import inspect_captioner
from captioning.data.image_headers import has_zero_tail
from captioning.data.images import MAX_PIXELS
from jobs.__main__ import app
from jobs.workers.decode_process import DecodeSettings, decoder_of
from tests.jobs.archive import read_rows
from tests.jobs.test_caption_run import without_ray  # noqa: F401 - a fixture
from tests.jobs.zoo import formats, readable, zoo

#: What a decoding process may come to: Python and its libraries, and the largest image that is let in, three times.
_MOST_BYTES = 1_400_000_000
#: Rows that say what a decoding process suffered, rather than what an image is.
_HARM = {"crash", "hang", "memory"}


def test_the_whole_ones_are_readable() -> None:
    assert len(formats()) == 12
    assert all(readable(data) for data in formats().values())


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize("each", [20, pytest.param(170, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])])
def test_the_zoo(tmp_path: Path, tiny_captioner: Path, each: int) -> None:
    animals = dict(zoo(each))
    assert len(animals) > 12 * each + 45
    (tmp_path / "zoo").mkdir()
    for name, data in animals.items():
        (tmp_path / "zoo" / name).write_bytes(data)
    # A number of its own, so that the process has met no other images.
    limits = DecodeSettings(timeout_s=61.5 + each)
    settings = ["--set", f"decode.timeout_s={limits.timeout_s}", "--set", "errors.max_fraction=1"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done = CliRunner().invoke(
            app,
            [
                *("caption", str(tmp_path / "zoo"), "-o", str(tmp_path / "out"), "--model", str(tiny_captioner)),
                *settings,
            ],
        )
    assert done.exit_code == 0, (done.output, done.exception)
    decoder = decoder_of(inspect_captioner(str(tiny_captioner)).preprocess, limits)
    assert decoder._child is not None
    assert decoder._count >= len(animals) - 1, "the process was replaced on the way: it died, or was ended"
    assert peak_bytes(decoder._child.pid) < _MOST_BYTES
    rows = read_rows(tmp_path / "out")
    assert rows.keys() == animals.keys()
    classes = Counter(row["error_class"] for row in rows.values())
    assert not _HARM & classes.keys(), classes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused = {
            name: row["error_class"]
            for name, row in rows.items()
            if row["status"] == "error" and readable(animals[name]) and not stricter(animals[name], row)
        }
        taken = [name for name, row in rows.items() if row["status"] == "ok" and not readable(animals[name])]
    assert not refused, "Pillow reads these"
    assert not taken, "Pillow does not read these"
    assert classes[None] > len(animals) // 10
    assert all(row["error_message"] for row in rows.values() if row["status"] == "error")


def stricter(data: bytes, row: dict) -> bool:
    """What is refused on purpose though Pillow shows something: unwritten ends, and more pixels than are let in."""
    if row["error_class"] == "truncated" and has_zero_tail(data):
        return True
    width, height = readable(data) or (0, 0)
    return row["error_class"] == "too_large" and width * height > MAX_PIXELS


def peak_bytes(process: int) -> int:
    """The most memory that the process has held."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("no VmHWM: is this Linux?")
