"""Captioning a split: like the captioner itself, with several decodings at once, and by several workers."""

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from captioning import captioner as captioner_module
from captioning.captioner import Captioner, load_captioner
from captioning.data.shards import ShardSet, iterate_shard
from captioning.decoding.search import decode
from captioning.training.validation import CaptionedSample, caption_split, caption_split_each, score_samples
from captioning.training.workers import Workers
from tests.tiny import save_tiny_captioner, write_tiny_shards


class ThreadWorkers(Workers):
    """Workers as threads of this process."""

    def __init__(self, rank: int, boxes: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, len(boxes))
        self._boxes = boxes
        self._barrier = barrier

    def gather(self, value: Any) -> list[Any]:
        self._boxes[self.rank] = value
        self._barrier.wait()
        gathered = list(self._boxes)
        self._barrier.wait()
        return gathered


def with_workers(world: int, work: Any) -> list[Any]:
    """What `work(workers)` gives in each of `world` workers."""
    boxes, barrier, results = [None] * world, threading.Barrier(world, timeout=60), [None] * world

    def run(rank: int) -> None:
        results[rank] = work(ThreadWorkers(rank, boxes, barrier))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"val": 11})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_captioner(tmp_path_factory.mktemp("model"))


@pytest.fixture
def captioner(folder: Path) -> Captioner:
    return load_captioner(str(folder), device="cpu")


def test_captions_are_those_of_the_captioner(captioner: Captioner, shards: ShardSet) -> None:
    described = caption_split(captioner, shards, "val", batch_size=4)
    assert len(described) == 11
    samples = [sample for info in shards.split("val") for sample in iterate_shard(shards.location, info.name)]
    for each, sample in zip(described, samples, strict=True):
        pixels = captioner.preprocess.from_bytes(sample.image).pixels
        [expected] = captioner.caption_pixels(pixels[None])
        assert (each.key, each.references) == (sample.key, sample.captions)
        assert each.caption.text == expected.text
        assert each.caption.num_tokens == expected.num_tokens
        assert each.caption.score == pytest.approx(expected.score, abs=1e-4)


def test_several_decodings_at_once_are_each_alone(captioner: Captioner, shards: ShardSet) -> None:
    encoded = []
    encode = captioner.encode
    captioner.encode = lambda pixels: encoded.append(len(pixels)) or encode(pixels)  # type: ignore
    decodings = [dataclasses.replace(captioner.decoding, beam_size=beams, max_new_tokens=5) for beams in (1, 4)]
    heard: list[int] = []
    together = caption_split_each(captioner, shards, "val", decodings, batch_size=4, on_progress=heard.append)
    assert encoded == [4, 4, 3], "an image is encoded once for all decodings"
    assert heard == [4, 8, 12, 16, 19, 22]
    for decoding, described in zip(decodings, together, strict=True):
        captioner.decoding = decoding
        assert described == caption_split(captioner, shards, "val", batch_size=4)
    assert together[0] != together[1]


@pytest.mark.parametrize("images", [None, 5])
def test_workers_share_the_images(captioner: Captioner, shards: ShardSet, images: int | None) -> None:
    alone = caption_split(captioner, shards, "val", images=images)
    results = with_workers(3, lambda workers: caption_split(captioner, shards, "val", workers=workers, images=images))
    assert results[0] == results[1] == results[2]
    texts = {each.key: each.caption.text for each in alone}
    assert {each.key: each.caption.text for each in results[0]} == texts
    assert len(results[0]) == (images or 11)


def test_a_caption_that_is_cut_is_known_and_counted(captioner: Captioner, shards: ShardSet) -> None:
    # EOS comes first, or never.
    with_end = dataclasses.replace(captioner.decoding, beam_size=1, max_new_tokens=3, min_new_tokens=0)
    without = dataclasses.replace(with_end, min_new_tokens=3)
    captioner.model.bias.data[captioner.tokenizer.eos_id] += 1000
    captioner.decoding = with_end
    assert all(each.caption.ended and each.caption.num_tokens == 1 for each in caption_split(captioner, shards, "val"))
    captioner.decoding = without
    cut = caption_split(captioner, shards, "val")
    assert all(not each.caption.ended and each.caption.num_tokens == 3 for each in cut)
    assert score_samples(cut).truncated == 11


def test_an_unknown_word_is_known_and_counted(
    captioner: Captioner, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Any = captioner.tokenizer
    captioner.model.bias.data[tokenizer.unk_id] += 1000
    assert not any(each.caption.unknown for each in caption_split(captioner, shards, "val"))

    def decode_all(stepper: Any, settings: Any, *, eos_id: int, banned: Any) -> Any:
        return decode(stepper, settings, eos_id=eos_id, banned=())

    monkeypatch.setattr(captioner_module, "decode", decode_all)
    said = caption_split(captioner, shards, "val")
    assert all(each.caption.unknown for each in said)
    assert score_samples(said).unknown == 11


def test_score_takes_flaws_from_what_was_described(captioner: Captioner, shards: ShardSet) -> None:
    described = caption_split(captioner, shards, "val")
    plain = [with_flaws(each, ended=True, unknown=False) for each in described]
    flawed = [with_flaws(plain[0], ended=False, unknown=False), with_flaws(plain[1], ended=True, unknown=True)]
    assert (score_samples(plain).truncated, score_samples(plain).unknown) == (0, 0)
    assert (score_samples([*flawed, *plain[2:]]).truncated, score_samples([*flawed, *plain[2:]]).unknown) == (1, 1)


def with_flaws(described: CaptionedSample, *, ended: bool, unknown: bool) -> CaptionedSample:
    caption = dataclasses.replace(described.caption, ended=ended, unknown=unknown)
    return dataclasses.replace(described, caption=caption)
