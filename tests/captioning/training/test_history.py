"""The history of a run: which time counts in the rates, JSON lines, TensorBoard."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from captioning.config import read_settings
from captioning.data.shards import ShardSet, iterate_shard
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.storage import Location
from captioning.training import throughput
from captioning.training.loop import TrainingRun
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.throughput import StepMetrics, ThroughputMeter
from captioning.training.workers import Workers
from tests.tiny import PREPROCESS, tiny_model, tiny_tokenizer, write_tiny_shards

RECIPE = """
optim: {warmup_steps: 2}
epochs: 2
images_per_step: 4
log_every_steps: 1
validation: {samples: 2}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 7, "val": 3})


def start(shards: ShardSet, output: Location, *overrides: str) -> TrainingRun:
    settings = read_settings(TrainSettings, RECIPE, overrides)
    parts = Parts(tiny_model(), tiny_tokenizer(), PREPROCESS, DecodingSettings(beam_size=1, max_new_tokens=8))
    return TrainingRun(settings, parts, shards, output)


class Clock:
    """A clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now

    def after(self, seconds: float, event: Callable[..., Any], *given: Any) -> Any:
        self.now += seconds
        return event(*given)


class Two(Workers):
    """Rank 0 of two workers; the other waits longer and uses more memory."""

    def gather(self, value: Any) -> list[Any]:
        return [value, {**value, "data_wait_share": 0.75, "memory_mb": 10**6}]


def metrics(loss: float, tokens: int, images: int, norm: float) -> StepMetrics:
    return StepMetrics({"loss": loss}, units=tokens, tokens=tokens, images=images, gradient_norm=norm)


def test_rates_are_of_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(throughput, "time", clock)
    meter = ThroughputMeter()
    clock.after(1.0, meter.batch_ready)
    clock.after(3.0, meter.step_done, metrics(2.0, 90, 8, 1.0))
    clock.after(0.5, meter.batch_ready)
    clock.after(1.5, meter.step_done, metrics(4.0, 30, 4, 2.0))
    # A validation, and a state that is saved.
    clock.after(60.0, meter.exclude_pause)
    clock.after(0.5, meter.batch_ready)
    clock.after(1.5, meter.step_done, metrics(2.0, 40, 4, 3.0))
    found = meter.flush(Workers())
    # Eight seconds, of which two were spent waiting.
    assert found["loss"] == pytest.approx((2.0 * 90 + 4.0 * 30 + 2.0 * 40) / 160)
    assert found["tokens_per_second"] == pytest.approx(160 / 8)
    assert found["images_per_second"] == pytest.approx(16 / 8)
    assert found["data_wait_share"] == pytest.approx(2 / 8)
    assert found["gradient_norm"] == pytest.approx(2.0)
    assert 10 < found["memory_mb"] < 10**5
    # The meter starts afresh; a lap has all the time, pauses included.
    clock.after(0.0, meter.batch_ready)
    clock.after(2.0, meter.step_done, metrics(1.0, 10, 2, 1.0))
    found = meter.flush(Two())
    assert (found["loss"], found["tokens_per_second"], found["images_per_second"]) == (1.0, 5.0, 1.0)
    assert (found["data_wait_share"], found["memory_mb"]) == (0.75, 10**6)
    assert meter.lap() == pytest.approx(70.0)
    assert meter.elapsed() == 0.0


def test_a_run_tells_all_figures_as_json_lines(shards: ShardSet, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    run = start(shards, Location.parse(str(tmp_path)))
    run._report = heard.append
    run.run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == heard == run.progress.history
    steps = [line for line in lines if line["kind"] == "step"]
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["step"] for line in validations] == [2, 4]
    for line in steps:
        assert 0 < line["loss"] < 20
        assert line["lr"] > 0
        assert line["gradient_norm"] > 0
        assert 0 <= line["data_wait_share"] <= 1
        assert line["memory_mb"] > 10
        assert line["total_steps"] == 4
    assert [line["epoch"] for line in steps] == [0.5, 1.0, 1.5, 2.0]
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    # The rates are of the same seconds: an epoch's images have as many tokens as they have.
    tokenizer, samples = run.tokenizer, _samples(shards)
    tokens = sum(len(tokenizer.encode(caption)) + 1 for sample in samples for caption in sample.captions)
    images = [after - before for before, after in zip((0, 4, 7, 11), (4, 7, 11, 14), strict=True)]
    assert [line["images_seen"] for line in steps] == [4, 7, 11, 14]
    told = [line["tokens_per_second"] / line["images_per_second"] * n for line, n in zip(steps, images, strict=True)]
    assert sum(told) == pytest.approx(2 * tokens, rel=0.01)
    for line in validations:
        assert {"cider_d", "bleu_4", "rouge_l", "num_images"} <= line.keys()
        assert line["num_images"] == 3
        assert [key for key, _ in line["samples"]] == [sample.key for sample in _samples(shards, "val")[:2]]
        assert all(isinstance(caption, str) for _, caption in line["samples"])


def test_tensorboard_shows_what_the_json_lines_say(shards: ShardSet, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    place = Location.parse(str(tmp_path))
    start(shards, place, "tensorboard=true", "save_every_steps=1").run(stop_at=3)
    start(shards, place, "tensorboard=true", "save_every_steps=1").run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    told = ("loss", "lr", "tokens_per_second", "images_per_second", "data_wait_share", "memory_mb")
    for kind, names in {"step": told, "validation": ("cider_d", "bleu_4")}.items():
        records = [line for line in lines if line["kind"] == kind]
        for name in names:
            scalars = [(event.step, event.value) for event in shown.Scalars(f"{kind}/{name}")]
            assert scalars == [(r["step"], pytest.approx(r[name], rel=1e-5, abs=1e-7)) for r in records], name
    for key, caption in next(line for line in lines if line["kind"] == "validation")["samples"]:
        (event, *_) = shown.Tensors(f"captions/{key}/text_summary")
        assert event.tensor_proto.string_val[0].decode() == caption


def test_tensorboard_that_cannot_be_had_is_refused_before_training(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"local OUTPUT only, not to memory://.*metrics\.jsonl"):
        start(shards, Location.parse("memory://run"), "tensorboard=true")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(SettingsError, match=r"pip install 'captioning\[tensorboard\]'"):
        start(shards, Location.parse(str(tmp_path)), "tensorboard=true")
    assert not any(tmp_path.iterdir())
    start(shards, Location.parse(str(tmp_path)), "tensorboard=false")


def _samples(shards: ShardSet, split: str = "train") -> list[Any]:
    return [sample for shard in shards.split(split) for sample in iterate_shard(shards.location, shard.name)]
