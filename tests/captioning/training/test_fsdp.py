"""FSDP: a model sharded over two processes learns the same as an unsharded one, and each process holds half of it."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file

from captioning.captioner import load_captioner
from captioning.config import read_settings
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.fsdp import local_part
from captioning.training.loop import TrainingRun
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from captioning.training.workers import Workers
from tests.tiny import write_tiny_shards

SHARED = """
tokenizer: {min_count: 1}
preprocess: {size: 32, mode: squash, mean: [127, 127, 127], std: [64, 64, 64]}
decoding: {beam_size: 1, max_new_tokens: 8}
optim: {lr: 0.003, pretrained_lr: 0.001, warmup_steps: 2, clip_norm: 0.5}
images_per_step: 4
images_per_pass: 1
log_every_steps: 1
save_every_steps: 4
validation: {images: 2}
workers: 2
"""
#: A CNN whose last stages are trained. With nine images one worker gets four, the other five: an uneven last step.
LSTM = """
model:
  kind: cnn_lstm
  encoder: {name: timm/test_efficientnet, weights: random, tune_from: blocks.2}
  embedding_size: 16
  hidden_size: 16
  heads: 2
  attention_penalty: 0.5
epochs: 2
"""
#: All objectives in turn.
GPT2 = """
model:
  kind: clip_gpt2
  clip: {hidden_size: 16, projection_dim: 12, layers: 2, heads: 2, image_size: 32, patch_size: 16}
  gpt2: {n_embd: 16, n_layer: 2, n_head: 2, n_positions: 24}
  mapper: {kind: transformer, prefix_length: 4, layers: 2, heads: 2}
  gradient_checkpointing: true
stages:
  - {objective: language_model, tune: {train: gpt2}, epochs: 1, images_per_step: 12, images_per_pass: 4}
  - {objective: contrastive, tune: {train: clip}, epochs: 1, contrastive: {width: 16, layers: 1, heads: 2}}
  - {tune: {train: all}, epochs: 1, scheduled_sampling: 0.5}
  - {objective: self_critical, tune: {train: decoder}, epochs: 1, images_per_pass: 2, optim: {lr: 0.0003}}
epochs: 1
"""
RECIPES = {"lstm": LSTM, "gpt2": GPT2}
#: Metrics that must be equal in both runs.
FIGURES = {"loss", "gradient_norm", "cider_d", "score", "reward"}
#: The step in the middle of an epoch at which the sharded run is stopped and resumed.
STOPS = {"lstm": 5, "gpt2": 8}


def recipe(name: str, *overrides: str) -> TrainSettings:
    return read_settings(TrainSettings, RECIPES[name] + SHARED, overrides)


def start(settings: TrainSettings, folder: Path, workers: Workers, shards: ShardSet) -> TrainingRun:
    parts = make_parts(settings, make_tokenizer(settings, shards))
    return TrainingRun(settings, parts, shards, Location.parse(str(folder)), workers)


@pytest.fixture(scope="module", params=["lstm", pytest.param("gpt2", marks=pytest.mark.slow)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs of two workers: `whole`, and `spread`, which was stopped and resumed."""
    folder = tmp_path_factory.mktemp("fsdp")
    write_tiny_shards(folder / "shards", {"train": 9, "val": 3})
    mp.spawn(_worker, (2, _free_port(), str(folder), request.param), nprocs=2)
    return folder


def test_a_model_that_is_spread_learns_as_one_in_a_piece(runs: Path) -> None:
    expected, found = _history(runs / "whole"), _history(runs / "spread")
    assert [(r["kind"], r["step"], r["stage"]) for r in found] == [(r["kind"], r["step"], r["stage"]) for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for figure in FIGURES & other.keys():
            assert one[figure] == pytest.approx(other[figure], rel=1e-4, abs=1e-4), (figure, one["step"])
    assert {"loss", "gradient_norm", "cider_d"} <= {figure for record in expected for figure in record}
    # The gradient was clipped, and the average differs from the weights.
    assert any(record.get("gradient_norm", 0) > 0.5 for record in expected)
    last, ours = _last_state(runs / "whole"), _last_state(runs / "spread")
    assert any((last["average"][key] - last["model"][key]).abs().max() > 1e-4 for key in last["average"])
    assert ours.keys() == last.keys() >= {"model", "optimizer", "average"}
    for part, tensors in ours.items():
        assert tensors.keys() == last[part].keys()
        for key, value in tensors.items():
            error = float((value - last[part][key]).abs().max() / (1 + last[part][key].abs().max()))
            assert error < tolerance(key), (part, key, error)


def tolerance(key: str) -> float:
    """Of an attention's keys the bias moves all scores of a query alike: its gradient is rounding, of which Adam makes
    steps as of any other."""
    return 1e-3 if key.endswith(("k_proj.bias", "queries_keys_values.bias", "c_attn.bias")) else 1e-5


def test_each_worker_holds_half(runs: Path) -> None:
    for rank in range(2):
        held: dict[str, tuple[int, int]] = json.loads((runs / f"held-{rank}.json").read_text())
        assert held.keys() == {"weights", "gradients", "optimizer", "average"}
        for part, (own, total) in held.items():
            assert 0.4 * total < own < 0.6 * total, (part, rank)


def test_the_best_checkpoint_is_a_whole_captioner(runs: Path) -> None:
    own, expected = (load_captioner(str(runs / name / "best")).model.state_dict() for name in ("spread", "whole"))
    assert own.keys() == expected.keys()
    for key, value in own.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=tolerance(key))


def test_one_worker_has_all_of_the_model_and_says_so(tmp_path: Path) -> None:
    shards = write_tiny_shards(tmp_path / "shards", {"train": 4, "val": 2})
    run = start(recipe("lstm", "fsdp=true", "workers=1", "epochs=1"), tmp_path / "run", Workers(), shards)
    assert run.run().step == 1
    notes = [record["message"] for record in run.progress.history if record["kind"] == "note"]
    assert any("fsdp" in note and "one worker" in note for note in notes)


def _worker(rank: int, world: int, port: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    workers, root = Workers.from_process_group(), Path(folder)
    shards = ShardSet.open(Location.parse(str(root / "shards")))
    start(recipe(name), root / "whole", workers, shards).run()
    spread = recipe(name, "fsdp=true"), root / "spread", workers, shards
    start(*spread).run(stop_at=STOPS[name])
    start(*spread).run()
    held = _held(start(spread[0], root / "held", workers, shards))
    (root / f"held-{rank}.json").write_text(json.dumps(held))
    dist.destroy_process_group()


def _held(run: TrainingRun) -> dict[str, tuple[int, int]]:
    """The number of elements that this worker holds after a step, and the total."""
    stage = run.start_stage(None)
    stage.step(next(iter(stage.epoch(0, start=0))), 0)
    assert stage.average is not None
    found = {
        "weights": [*stage.model.parameters()],
        "gradients": [p.grad for p in stage.trained if p.grad is not None],
        "optimizer": [value for state in stage.optimizer.state.values() for value in state.values() if value.ndim],
        "average": [*stage.average.weights.values()],
    }
    return {part: (sum(local_part(t).numel() for t in ts), sum(t.numel() for t in ts)) for part, ts in found.items()}


def _history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _last_state(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    newest = max((folder / "state").glob("step-*"), key=lambda path: path.name)
    return {path.stem: load_file(path) for path in sorted(newest.glob("*.safetensors"))}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
