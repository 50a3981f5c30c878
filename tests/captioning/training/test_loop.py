"""The training loop: exact gradients over workers, exact resume, and the files of a run."""

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from captioning.captioner import load_captioner
from captioning.config import read_settings
from captioning.data.shards import ShardSet
from captioning.errors import DivergedError, SettingsError
from captioning.storage import Location
from captioning.training.batches import Batch
from captioning.training.loop import TrainingRun
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.workers import Workers
from tests.captioning.training.runs import recipe, start
from tests.tiny import PREPROCESS, tiny_model, tiny_settings, tiny_tokenizer, write_tiny_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 18, "val": 5})


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in run.model.state_dict().items()}


@pytest.mark.parametrize("stop", [2, 5, 7, 10])
def test_a_stopped_run_ends_as_one_left_alone(shards: ShardSet, tmp_path: Path, stop: int) -> None:
    settings = recipe()
    alone = start(settings, shards, tmp_path / "alone")
    alone.run()
    start(settings, shards, tmp_path / "stopped").run(stop_at=stop)
    again = start(settings, shards, tmp_path / "stopped")
    again.run()
    assert again.progress.step == alone.progress.step == 15
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(again)[name], value, rtol=1e-6, atol=1e-7)
    kinds = [[(r["kind"], r["step"]) for r in run.progress.history] for run in (alone, again)]
    assert kinds[0] == kinds[1]
    lines = (tmp_path / "stopped" / "metrics.jsonl").read_text().splitlines()
    assert [(r["kind"], r["step"]) for r in map(json.loads, lines)] == kinds[0]


def test_a_half_written_state_is_not_used(shards: ShardSet, tmp_path: Path) -> None:
    settings = recipe()
    start(settings, shards, tmp_path).run(stop_at=7)
    states = sorted((tmp_path / "state").iterdir())
    (states[-1] / "state.json").unlink()
    (states[-1] / "model.safetensors").write_bytes(b"half")
    again = start(settings, shards, tmp_path)
    assert again.run().step == 15


def test_a_run_leaves_a_captioner_figures_and_curves(shards: ShardSet, tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    run = start(recipe("save_dtype=float16"), shards, tmp_path, heard.append)
    run.run()
    captioner = load_captioner(str(tmp_path / "best"))
    assert isinstance(captioner.caption([np.zeros((40, 50, 3), np.uint8)])[0].text, str)
    assert [r["step"] for r in heard if r["kind"] == "validation"] == [5, 10, 15]
    assert {"loss", "lr", "tokens_per_second", "images_per_second", "data_wait_share", "memory_mb"} <= heard[0].keys()
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    card = (tmp_path / "best" / "README.md").read_text()
    assert "squares" in card
    assert "images_per_step: 4" in card
    assert len(list((tmp_path / "state").glob("step-*"))) == 2


def test_early_stopping(shards: ShardSet, tmp_path: Path) -> None:
    # Without training no validation is better than the first.
    run = start(recipe("optim.lr=1e-9", "optim.pretrained_lr=1e-9", "validation.patience=1"), shards, tmp_path)
    progress = run.run()
    assert progress.stopped_early
    assert progress.step == 10
    assert progress.best_step == 5


def test_validation_every_few_steps(shards: ShardSet, tmp_path: Path) -> None:
    run = start(recipe("epochs=1", "validation.every_steps=2", "validation.images=3"), shards, tmp_path)
    run.run()
    validations = [r for r in run.progress.history if r["kind"] == "validation"]
    assert [r["step"] for r in validations] == [2, 4, 5]
    assert validations[0]["num_images"] == 3


def test_a_loss_that_is_no_number_is_said(shards: ShardSet, tmp_path: Path) -> None:
    run = start(recipe(), shards, tmp_path)
    with torch.no_grad():
        run.model.bias.fill_(float("nan"))  # type: ignore[operator]
    with pytest.raises(DivergedError, match="Lower optim.lr"):
        run.run()


def test_decoding_that_the_model_has_no_room_for_is_refused_before_training(shards: ShardSet, tmp_path: Path) -> None:
    small = """
model:
  kind: clip_gpt2
  clip: {hidden_size: 16, projection_dim: 16, layers: 1, heads: 2, image_size: 32, patch_size: 16}
  gpt2: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 12}
  mapper: {kind: mlp, prefix_length: 4}
  train: all
tokenizer: {min_count: 1}
preprocess: {size: 32, mode: squash}
decoding: {beam_size: 1, max_new_tokens: 20}
"""
    with pytest.raises(SettingsError, match=r"max_new_tokens is 20.*room for"):
        start(read_settings(TrainSettings, small), shards, tmp_path)
    assert not any(tmp_path.iterdir())


def test_frozen_parts_stay_and_the_rest_learns(shards: ShardSet, tmp_path: Path) -> None:
    run = start(recipe("model.encoder.tune_from=null", "epochs=1"), shards, tmp_path)
    before = weights(run)
    run.run()
    changed = {name for name, value in weights(run).items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("encoder.") for name in changed)
    assert {"embed.weight", "lstm.weight_hh_l0", "bias"} <= changed


def test_the_gradient_is_the_same_however_a_step_is_spread(shards: ShardSet, tmp_path: Path) -> None:
    """One pass, passes of uneven size, and two processes with uneven slices, one without data."""
    passes = _passes(tmp_path, shards)
    whole = _gradient([_joined(passes)], shards, tmp_path)
    for split in (passes, passes[::-1]):
        _assert_close(_gradient(split, shards, tmp_path), whole)
    work = {"passes": passes, "shares": [[[0], [1, 2]], [[0, 1, 2], []]], "shards": shards}
    torch.save(work, tmp_path / "work.pt")
    mp.spawn(_worker, (2, _free_port(), str(tmp_path)), nprocs=2)
    gradients = [each for rank in (0, 1) for each in torch.load(tmp_path / f"gradients-{rank}.pt", weights_only=True)]
    assert len(gradients) == 4
    for gradient in gradients:
        _assert_close(gradient, whole)


def _passes(folder: Path, shards: ShardSet) -> list[Batch]:
    from captioning.training.stream import epoch_samples

    collator = _exact_run(shards, folder, Workers()).start_stage(None).collator
    samples = list(epoch_samples(shards, "train", epoch=0, seed=0, rank=0, world_size=1, shuffle=False))
    return [collator.collate(samples[a:b], 0) for a, b in ((0, 1), (1, 6), (6, 8))]


def _joined(passes: list[Batch]) -> Batch:
    longest = max(batch.captions.shape[1] for batch in passes)
    padded = [torch.nn.functional.pad(b.captions, (0, longest - b.captions.shape[1]), value=-100) for b in passes]
    offsets = [sum(len(b.keys) for b in passes[:at]) for at in range(len(passes))]
    return Batch(
        tuple(key for b in passes for key in b.keys),
        torch.cat([b.pixels for b in passes if b.pixels is not None]),
        torch.cat(padded),
        torch.cat([b.image_index + offset for b, offset in zip(passes, offsets, strict=True)]),
        tuple(each for b in passes for each in b.references),
    )


def _exact_run(shards: ShardSet, folder: Path, workers: Workers) -> TrainingRun:
    model = tiny_model(tiny_settings(tune_from="all"))
    settings = recipe("model.dropout=0", f"workers={workers.world_size}", "images_per_step=12")
    return TrainingRun(
        settings, Parts(model, tiny_tokenizer(), PREPROCESS), shards, Location.parse(str(folder)), workers
    )


def _gradient(
    passes: list[Batch], shards: ShardSet, folder: Path, workers: Workers | None = None
) -> list[torch.Tensor]:
    stage = _exact_run(shards, folder, workers or Workers()).start_stage(None)
    stage.gradient(passes)
    return [parameter.grad.clone() for parameter in stage.model.parameters() if parameter.grad is not None]


def _worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work = torch.load(Path(folder) / "work.pt", weights_only=False)
    workers = Workers.from_process_group()
    gradients = [
        _gradient([work["passes"][at] for at in shares[rank]], work["shards"], Path(folder), workers)
        for shares in work["shares"]
    ]
    torch.save(gradients, Path(folder) / f"gradients-{rank}.pt")
    dist.destroy_process_group()


def _assert_close(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        scale = float(other.abs().max())
        assert float((one - other).abs().max()) <= 1e-5 * scale + 1e-9


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
