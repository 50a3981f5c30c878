"""One shard, without Ray: every image has its row, whatever happens to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.errors import CheckpointError, UnfinishedError
from captioning.run.index import Index, write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import open_sources
from captioning.run.staging import staged_shards
from captioning.run.table import Row
from captioning.storage import Location, StorageSettings
from jobs.workers.caption_shard import CaptionShard, LoadCaptioner, caption_rows
from jobs.workers.decode_shard import decode_entries, pixels_of
from jobs.workers.micro_batches import MicroBatches
from tests.jobs.archive import write_odd_files, write_photos

SETTINGS = PreprocessSettings(size=16)


@dataclass(frozen=True)
class Said:
    text: str
    score: float = -1.5
    num_tokens: int = 3
    alternatives: tuple[tuple[str, float], ...] = ()


class FakeCaptioner:
    """Says how bright a picture is; fails where it is told to."""

    name = "fake-00000000"

    def __init__(self, *, fails_on: Sequence[bytes] = (), broken: bool = False) -> None:
        self.fails_on = set(fails_on)
        self.broken = broken
        self.batches: list[int] = []

    def caption_pixels(self, pixels: np.ndarray, *, batch_size: int) -> list[Said]:
        self.batches.append(len(pixels))
        if self.broken or any(image.tobytes() in self.fails_on for image in pixels):
            raise RuntimeError("not this one")
        return [Said(f"brightness {image.mean():.3f}") for image in pixels]


def load_broken() -> FakeCaptioner:
    raise CheckpointError("the weights are damaged")


def caption_all(captioner: FakeCaptioner, decoded: pa.Table) -> list[Row]:
    return caption_rows(MicroBatches(captioner, 4).caption, decoded, model=captioner.name)


def indexed(folder: Path, output: Path, shard_size: int | None = None) -> Index:
    layout = RunLayout(Location.parse(str(output)))
    return write_segment(layout, open_sources([str(folder)]), shard_size=shard_size).commit()


def test_good_and_bad_images_keep_their_order_and_get_a_row_each(tmp_path: Path) -> None:
    sizes, classes = write_odd_files(tmp_path / "odd")
    index = indexed(tmp_path / "odd", tmp_path / "out", 9)
    decoded = decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings())
    rows = caption_all(FakeCaptioner(), decoded)
    assert [row.image_id for row in rows] == sorted([*sizes, *classes])
    for row in rows:
        if row.image_id in sizes:
            pixels = Preprocess(SETTINGS).from_bytes((tmp_path / "odd" / row.image_id).read_bytes()).pixels
            assert (row.status, row.caption) == ("ok", f"brightness {pixels.mean():.3f}")
            assert (row.width, row.height) == sizes[row.image_id]
        else:
            assert (row.status, row.error_class, row.caption) == ("error", classes[row.image_id], None)
            assert row.error_message


def test_a_file_that_is_gone_is_a_row_with_a_reason(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", 4)
    index = indexed(photos, tmp_path / "out", 4)
    (photos / "0" / "0002.jpg").unlink()
    decoded = decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings())
    assert len(pixels_of(decoded)) == 3
    rows = {row.image_id: row for row in caption_all(FakeCaptioner(), decoded)}
    assert rows["0/0002.jpg"].error_class == "missing"
    assert sum(row.status == "ok" for row in rows.values()) == 3


def test_an_image_that_the_model_fails_on_costs_that_image_alone(tmp_path: Path) -> None:
    index = indexed(write_photos(tmp_path / "photos", 4), tmp_path / "out", 4)
    decoded = decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings())
    captioner = FakeCaptioner(fails_on=[pixels_of(decoded)[1].tobytes()])
    rows = caption_all(captioner, decoded)
    assert [row.status for row in rows] == ["ok", "error", "ok", "ok"]
    assert rows[1].error_class == "model"
    assert "not this one" in str(rows[1].error_message)


def test_a_captioner_that_fails_on_everything_ends_the_run(tmp_path: Path) -> None:
    index = indexed(write_photos(tmp_path / "photos", 2), tmp_path / "out", 2)
    decoded = decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings())
    with pytest.raises(UnfinishedError, match="fails on every image: RuntimeError: not this one"):
        caption_all(FakeCaptioner(broken=True), decoded)


def test_a_shard_is_captioned_whole_and_staged_under_its_number(tmp_path: Path) -> None:
    index = indexed(write_photos(tmp_path / "photos", 5), tmp_path / "out", 3)
    actor = CaptionShard(FakeCaptioner, IndexShardIO(index), 2)
    for shard in index.shards():
        decoded = decode_entries(shard.number, index.rows(shard), SETTINGS, StorageSettings())
        [result] = actor(decoded).to_pylist()
        assert (result["shard"], result["images"], result["error_classes"]) == (shard.number, shard.rows, "{}")
    assert actor.captioner.batches == [2, 1, 2]
    assert staged_shards(index.layout) == {0, 1}


def test_a_captioner_that_cannot_be_loaded_says_so_when_called(tmp_path: Path) -> None:
    index = indexed(write_photos(tmp_path / "photos", 2), tmp_path / "out", 2)
    actor = CaptionShard(load_broken, IndexShardIO(index), 2)
    with pytest.raises(CheckpointError, match="the weights are damaged"):
        actor(decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings()))


def test_no_image_decoded_is_no_call_of_the_model(tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"")
    index = indexed(tmp_path / "bad", tmp_path / "out", 2)
    captioner = FakeCaptioner()
    decoded = decode_entries(0, index.rows(index.shard(0)), SETTINGS, StorageSettings())
    assert [row.error_class for row in caption_all(captioner, decoded)] == ["empty"]
    assert captioner.batches == []


@pytest.mark.parametrize(("device", "calls"), [("cuda", [(1, 16, 16, 3)]), ("cpu", [])])
def test_a_captioner_on_a_gpu_is_warm_before_it_takes_work(device: str, calls: list[object], monkeypatch) -> None:
    seen: list[object] = []

    class Loaded(FakeCaptioner):
        preprocess = Preprocess(SETTINGS)

        def caption_pixels(self, pixels: np.ndarray, **_: object) -> list[Said]:
            seen.append(pixels.shape)
            return [Said("nothing")]

    monkeypatch.setattr("captioning.captioner.load_captioner", lambda ref, **given: Loaded())
    LoadCaptioner(None, Loaded.name, device, "fp32", {}, StorageSettings(), threads=1)()
    assert seen == calls
