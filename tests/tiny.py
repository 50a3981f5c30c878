"""Small fixtures: a captioner that loads in milliseconds, and training shards of coloured squares."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from captioning.data.preprocess import PreprocessSettings
from captioning.data.shards import ShardInfo, ShardSet
from captioning.data.tokenizers import WordTokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.models.base import Vocabulary
from captioning.models.checkpoint import save_checkpoint
from captioning.models.cnn_lstm import CnnLstm
from captioning.models.cnn_lstm_settings import CnnLstmSettings
from captioning.models.encoder_settings import EncoderSettings
from captioning.storage import Location

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230), "white": (240, 240, 240)}
PLACES = ("top", "bottom")
CAPTIONS = [f"a {colour} square at the {place}" for colour in COLOURS for place in PLACES]
PREPROCESS = PreprocessSettings(size=32, mode="squash", mean=(127.0, 127.0, 127.0), std=(64.0, 64.0, 64.0))

#: The start of a recipe for a captioner that trains in seconds, including the last parts of its CNN.
TINY_RECIPE = """
model:
  kind: cnn_lstm
  encoder: {name: timm/test_efficientnet, weights: random, tune_from: blocks.2}
  embedding_size: 16
  hidden_size: 16
  heads: 2
  dropout: 0.1
tokenizer: {min_count: 1}
preprocess: {size: 32, mode: squash}
decoding: {beam_size: 1, max_new_tokens: 8}
optim: {lr: 0.01, encoder_lr: 0.00015, warmup_steps: 3}"""


def tiny_settings(*, attention: bool = True, dropout: float = 0.0, tune_from: str | None = None) -> CnnLstmSettings:
    return CnnLstmSettings(
        encoder=EncoderSettings(name="timm/test_efficientnet", weights="random", tune_from=tune_from),
        attention=attention,
        heads=2,
        embedding_size=16,
        hidden_size=16,
        dropout=dropout,
        feature_dropout=dropout,
    )


def tiny_tokenizer() -> WordTokenizer:
    return WordTokenizer.train(CAPTIONS, min_count=1)


def tiny_model(
    settings: CnnLstmSettings | None = None, seed: int = 0, *, vocabulary_size: int | None = None
) -> CnnLstm:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(seed)
    vocabulary = Vocabulary(vocabulary_size or tokenizer.vocab_size, tokenizer.bos_id, tokenizer.eos_id)
    model = CnnLstm(settings or tiny_settings(), vocabulary, PREPROCESS, pretrained=True)
    with torch.no_grad():
        # Random logits are almost equal; spread them, so that captions differ and ties do not occur.
        model.bias.normal_(std=0.5)
        model.embed.weight.mul_(6)
    return model.eval()


def save_tiny_captioner(folder: Path, *, seed: int = 0, decoding: DecodingSettings | None = None) -> Path:
    """A checkpoint of a few hundred thousand random weights. Its captions are nonsense, but always the same."""
    decoding = decoding or DecodingSettings(beam_size=2, max_new_tokens=6)
    save_checkpoint(folder, tiny_model(seed=seed), tiny_tokenizer(), PREPROCESS, decoding)
    return folder


def square(colour: str, place: str, noise: int) -> bytes:
    """A JPEG of 32×32 pixels with a coloured square in its upper or lower half."""
    generator = np.random.default_rng(noise)
    pixels = generator.integers(0, 40, (32, 32, 3), dtype=np.uint8)
    row = (2 if place == "top" else 18) + noise % 3
    pixels[row : row + 11, 8:24] = COLOURS[colour]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tiny_shards(folder: Path, counts: dict[str, int], *, shard_size: int = 7) -> ShardSet:
    """Training shards with `counts` images per split, one to three captions each."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, tuple[ShardInfo, ...]] = {}
    number = 0
    for split, count in counts.items():
        shards = []
        for at, start in enumerate(range(0, count, shard_size)):
            name = f"{split}-{at:06d}.tar"
            captions = 0
            samples = min(shard_size, count - start)
            with tarfile.open(folder / name, "w") as tar:
                for _ in range(samples):
                    colour, place = list(COLOURS)[number % 4], PLACES[number // 4 % 2]
                    said = [f"a {colour} square at the {place}"] * (1 + number % 3)
                    key = f"{split}{number:04d}"
                    about = {"image_id": f"id of {key}", "captions": said, "split": split}
                    _add(tar, f"{key}.jpg", square(colour, place, number))
                    _add(tar, f"{key}.json", json.dumps(about).encode())
                    captions += len(said)
                    number += 1
            shards.append(ShardInfo(name, samples, captions, (folder / name).stat().st_size))
        splits[split] = tuple(shards)
    shards_set = ShardSet(Location.parse(str(folder)), "squares", f"squares-{counts}-{shard_size}", splits)
    (folder / "shards.json").write_text(json.dumps(shards_set.to_json()))
    return shards_set


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
