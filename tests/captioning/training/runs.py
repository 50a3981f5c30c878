"""Small training runs for tests: recipes of a few steps, and runs with given validation scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.config import read_settings
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.state import load_weights

RECIPE = """
model:
  kind: cnn_lstm
  encoder: {name: timm/test_efficientnet, weights: random, tune_from: all}
  embedding_size: 16
  hidden_size: 16
  heads: 2
  dropout: 0.1
  attention_penalty: 0.5
tokenizer: {min_count: 1}
preprocess: {size: 32, mode: squash, mean: [127, 127, 127], std: [64, 64, 64]}
decoding: {beam_size: 1, max_new_tokens: 8}
optim: {lr: 0.01, pretrained_lr: 0.001, warmup_steps: 3}
epochs: 3
images_per_step: 4
images_per_pass: 3
log_every_steps: 2
save_every_steps: 3
"""

#: The encoder is trained, then frozen with its features cached, then self-critical training.
LSTM_STAGES = (
    RECIPE
    + """
feature_cache: auto
crop: 0.7
views: 3
stages:
  - {name: encoder, epochs: 1, views: 1, tune: {encoder: {tune_from: blocks.2}}}
  - {name: decoder, epochs: 2, tune: {encoder: {tune_from: null}}, scheduled_sampling: 0.5, label_smoothing: 0.0}
  - {name: reward, objective: self_critical, epochs: 1, tune: {encoder: {tune_from: null}, dropout: 0.3}}
"""
)

#: The image tower, GPT-2, the mapper on cached features, and everything together.
CLIP_STAGES = """
model:
  kind: clip_gpt2
  clip: {encoder: {name: timm/test_efficientnet, weights: random, tune_from: blocks.2}, projection_dim: 16}
  gpt2: {n_embd: 16, n_layer: 1, n_head: 2, n_positions: 24}
  mapper: {kind: transformer, source: patches, prefix_length: 4, layers: 1, heads: 2}
  train: all
  dropout: 0.1
tokenizer: {min_count: 1}
preprocess: {size: 32, mode: squash, mean: [127, 127, 127], std: [64, 64, 64]}
decoding: {beam_size: 1, max_new_tokens: 8}
optim: {lr: 0.01, pretrained_lr: 0.003, warmup_steps: 2}
contrastive: {width: 16, layers: 1, heads: 2, captions_per_image: 1}
images_per_step: 4
images_per_pass: 3
feature_cache: auto
views: 2
log_every_steps: 1
save_every_steps: 2
stages:
  - {name: contrastive, objective: contrastive, epochs: 1, tune: {train: clip}}
  - {name: language, objective: language_model, epochs: 1, images_per_step: 8, tune: {train: gpt2}}
  - {name: mapper, epochs: 1, tune: {train: mapper}}
  - {name: all, epochs: 1, optim: {encoder_lr: 0.0005}}
"""


def recipe(*overrides: str, text: str = RECIPE) -> TrainSettings:
    return read_settings(TrainSettings, text, overrides)


def start(settings: TrainSettings, shards: ShardSet, folder: Path, report: Any = None) -> TrainingRun:
    parts = make_parts(settings, make_tokenizer(settings, shards))
    return TrainingRun(settings, parts, shards, Location.parse(str(folder)), report=report)


def weights(run: TrainingRun) -> dict[str, Tensor]:
    return copied(run.model.state_dict())


def copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal except for rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-7, msg=lambda said, name=name: f"{name}: {said}"
        )


def best_of_stage(folder: Path, stage: int) -> dict[str, Tensor]:
    return load_weights(Location.parse(str(folder)), f"stage-{stage:02d}-best")


class ScriptedRun(TrainingRun):
    """A run whose validation scores are given by step. Records its weights at each validation and stage start."""

    scores: Mapping[int, float]

    def _evaluate(self, stage: Stage) -> tuple[dict[str, float], list[tuple[str, str]]]:
        self.__dict__.setdefault("validated", {})[self.progress.step] = weights(self)
        return dict.fromkeys(("cider_d", "bleu_4", "rouge_l", "score"), self.scores[self.progress.step]), []

    def start_stage(self, given: Mapping[str, Tensor] | None) -> Stage:
        stage = super().start_stage(given)
        self.__dict__.setdefault("at_start", []).append(weights(self))
        return stage


def run_with_scores(settings: TrainSettings, shards: ShardSet, folder: Path, scores: Mapping[int, float]) -> Any:
    """A finished `ScriptedRun`."""
    parts = make_parts(settings, make_tokenizer(settings, shards))
    run = ScriptedRun(settings, parts, shards, Location.parse(str(folder)))
    run.scores = scores
    run.run()
    return run
