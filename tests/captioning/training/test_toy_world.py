"""Both models, from random weights, learn to describe unseen pictures of a toy world."""

from pathlib import Path

import numpy as np
import pytest

from captioning.config import read_settings
from captioning.data.shards import ShardSet, iterate_shard
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from captioning.training.validation import caption_split
from tests.toy_world import COLOURS, RELATIONS, SHAPES, draw, make_scene, write_world

COMMON = """
tokenizer: {min_count: 1}
decoding: {beam_size: 1, max_new_tokens: 16}
validation: {images: 100}
label_smoothing: 0.0
flip: false
images_per_step: 32
images_per_pass: 32
save_every_steps: 100000
"""
CLIP_GPT2 = f"""{COMMON}
model:
  kind: clip_gpt2
  clip: {{hidden_size: 64, projection_dim: 64, layers: 2, heads: 4, image_size: 48, patch_size: 8}}
  gpt2: {{n_embd: 64, n_layer: 2, n_head: 4, n_positions: 32}}
  mapper: {{kind: transformer, source: patches, prefix_length: 4, layers: 1, heads: 4}}
  train: all
  dropout: 0.0
optim: {{lr: 0.0015, warmup_steps: 100, clip_norm: 1.0, ema_decay: 0.99}}
epochs: 18
preprocess: {{size: 48, mode: squash, mean: [30, 30, 30], std: [40, 40, 40]}}
"""
CNN_LSTM = f"""{COMMON}
model:
  kind: cnn_lstm
  encoder: {{name: timm/test_resnet, weights: random, tune_from: all, norm_statistics: learned}}
  embedding_size: 64
  hidden_size: 64
  heads: 2
  dropout: 0.0
  feature_dropout: 0.0
optim: {{lr: 0.003, pretrained_lr: 0.003, warmup_steps: 50, clip_norm: 1.0, ema_decay: 0.99}}
epochs: 5
preprocess: {{size: 64, mode: squash, mean: [30, 30, 30], std: [40, 40, 40]}}
"""


def test_a_picture_depends_on_seed_and_split_alone(tmp_path: Path) -> None:
    first = write_world(tmp_path / "first", {"train": 12, "test": 3})
    again = write_world(tmp_path / "again", {"test": 3, "train": 30})
    other = write_world(tmp_path / "other", {"train": 12}, seed=1)
    assert pictures(first, "train") == pictures(again, "train")[:12]
    assert pictures(first, "test") == pictures(again, "test")
    assert not {image for image, _ in pictures(first, "train")} & {image for image, _ in pictures(first, "test")}
    assert pictures(first, "train") != pictures(other, "train")


def test_captions_follow_the_grammar() -> None:
    generator = np.random.default_rng(0)
    scenes = [make_scene(generator) for _ in range(300)]
    things = {f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES}
    right = things | {f"{one} {relation} {two}" for one in things for two in things for relation in RELATIONS}
    captions = {scene.caption for scene in scenes}
    assert captions <= right
    assert len(captions) > 150
    for scene in scenes:
        if scene.relation is not None:
            one, two = scene.things
            gaps = {"left of": two.x - one.x, "above": two.y - one.y}
            assert gaps[scene.relation] > 2 * abs(sum(gaps.values()) - gaps[scene.relation])


def test_a_picture_shows_its_colours() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        scene = make_scene(generator)
        pixels = {tuple(pixel) for row in np.asarray(draw(scene, generator)).tolist() for pixel in row}
        assert {COLOURS[thing.colour] for thing in scene.things} <= pixels


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_cnn_lstm_learns_the_world(tmp_path: Path) -> None:
    assert exact_share(CNN_LSTM, tmp_path, train=6000) >= 0.9


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_clip_gpt2_learns_the_world(tmp_path: Path) -> None:
    assert exact_share(CLIP_GPT2, tmp_path, train=8000) >= 0.9


def exact_share(recipe: str, folder: Path, *, train: int) -> float:
    """The share of 500 unseen pictures with an exactly correct caption after training with `recipe`."""
    shards = write_world(folder / "world", {"train": train, "val": 100, "test": 500})
    settings = read_settings(TrainSettings, recipe)
    parts = make_parts(settings, make_tokenizer(settings, shards))
    run = TrainingRun(settings, parts, shards, Location.parse(str(folder / "run")))
    run.run()
    described = caption_split(run.captioner(), shards, "test", batch_size=100)
    assert len(described) == 500
    return sum(each.caption.text == each.references[0] for each in described) / len(described)


def pictures(shards: ShardSet, split: str) -> list[tuple[bytes, tuple[str, ...]]]:
    return [
        (sample.image, sample.captions)
        for shard in shards.split(split)
        for sample in iterate_shard(shards.location, shard.name)
    ]
