"""The recipes with published weights, run end to end with small models instead of downloads."""

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPModel, GPT2Config, GPT2LMHeadModel

from captioning.captioner import load_captioner
from captioning.config import read_settings, read_values, to_dict
from captioning.data.tokenizers import BpeTokenizer
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from tests.tiny import CAPTIONS, square, write_tiny_shards

CONFIGS = Path(__file__).parents[3] / "configs" / "train"
#: Reduces a recipe to a few steps on a few small pictures.
SMALL = ["images_per_step=4", "images_per_pass=3", "log_every_steps=1", "optim.warmup_steps=2", "search=null"]


def read(recipe: str, overrides: Sequence[str], stage_epochs: int | None = None) -> TrainSettings:
    text = (CONFIGS / recipe).read_text()
    if stage_epochs is not None:
        values = read_values(text)
        text = json.dumps({**values, "stages": [{**stage, "epochs": stage_epochs} for stage in values["stages"]]})
    return read_settings(TrainSettings, text, [*SMALL, *overrides], where=recipe)


def train(settings: TrainSettings, folder: Path) -> TrainingRun:
    shards = write_tiny_shards(folder / "shards", {"train": 9, "val": 3})
    parts = make_parts(settings, make_tokenizer(settings, shards))
    run = TrainingRun(settings, parts, shards, Location.parse(str(folder / "out")))
    run.run()
    return run


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


def picture(colour: str) -> Image.Image:
    return Image.open(io.BytesIO(square(colour, "top", 1)))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A CLIP and a GPT-2 with its tokenizer, in the layout of their repositories."""
    torch.manual_seed(3)
    tokenizer = BpeTokenizer.train(CAPTIONS, vocab_size=300)
    tokens = [json.loads(tokenizer._backend.to_str())["model"][part] for part in ("vocab", "merges")]
    gpt2 = GPT2Config(n_embd=32, n_layer=2, n_head=2, n_positions=64, vocab_size=tokenizer.vocab_size)
    GPT2LMHeadModel(gpt2).save_pretrained(tmp_path / "hub" / "gpt2")
    (tmp_path / "hub" / "gpt2" / "vocab.json").write_text(json.dumps(tokens[0]))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokens[1]]
    (tmp_path / "hub" / "gpt2" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    whole = CLIPConfig(
        text_config=text, vision_config={**vision, "intermediate_size": 64, "projection_dim": 16}, projection_dim=16
    )
    CLIPModel(whole).half().save_pretrained(tmp_path / "hub" / "clip")
    assert set(ByteLevel.alphabet()) <= set(tokens[0])
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "variant", [[], ["model.lora={rank: 2}"], ["model.train=mapper", "model.mapper.kind=transformer"]]
)
def test_clip_gpt2(hub: Path, tmp_path: Path, variant: list[str]) -> None:
    folders = [f"model.clip={hub / 'clip'}", f"model.gpt2={hub / 'gpt2'}", f"tokenizer.source={hub / 'gpt2'}"]
    sizes = ["preprocess.size=32", "epochs=4", "optim.lr=3e-3", "optim.pretrained_lr=1e-3"]
    run = train(read("clip-gpt2.yaml", [*folders, *sizes, *variant]), tmp_path)
    assert run.progress.step == 12
    seen = losses(tmp_path)
    assert seen[-1] < seen[0]

    clip = CLIPModel.from_pretrained(hub / "clip").float()
    gpt2 = GPT2LMHeadModel.from_pretrained(hub / "gpt2")
    # The checkpoint stands alone.
    shutil.rmtree(hub)
    captioner = load_captioner(str(tmp_path / "out" / "best"), device="cpu")
    model = captioner.model
    assert isinstance(model, ClipGpt2)
    assert torch.equal(model.clip.visual_projection.weight, clip.visual_projection.weight)
    kept = torch.equal(model.gpt2.transformer.h[0].attn.c_attn.weight, gpt2.transformer.h[0].attn.c_attn.weight)
    assert kept == ("model.train=mapper" in variant)
    assert str(hub) not in json.dumps(to_dict(model.settings))
    assert all(caption.text for caption in captioner.caption([picture("red"), picture("blue")]))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet101", marks=pytest.mark.slow)])
def test_resnet_lstm(tmp_path: Path, name: str) -> None:
    torch.manual_seed(3)
    published = torchvision.models.get_model(name).state_dict()
    torch.save(published, tmp_path / "weights.pth")
    encoder = [f"model.encoder.name=torchvision/{name}", f"model.encoder.weights={tmp_path / 'weights.pth'}"]
    sizes = ["model.embedding_size=32", "model.hidden_size=32", "preprocess.size=64", "tokenizer.min_count=1"]
    run = train(read("resnet101-lstm.yaml", [*encoder, *sizes], stage_epochs=1), tmp_path)
    assert run.progress.step == 9
    captioner = load_captioner(str(tmp_path / "out" / "best"), device="cpu")
    found = {key.removeprefix("encoder.trunk."): value for key, value in captioner.model.state_dict().items()}
    assert torch.equal(found["layer3.0.conv1.weight"], published["layer3.0.conv1.weight"])
    last = {key: value for key, value in run.model.state_dict().items() if key.startswith("encoder.trunk.")}
    assert not torch.equal(last["encoder.trunk.layer4.0.conv1.weight"], published["layer4.0.conv1.weight"])
    assert torch.equal(last["encoder.trunk.layer3.0.conv1.weight"], published["layer3.0.conv1.weight"])
    assert all(caption.text for caption in captioner.caption([picture("red"), picture("blue")]))


def test_the_recipe_is_for_resnet101() -> None:
    assert to_dict(read("resnet101-lstm.yaml", []))["model"]["encoder"]["name"] == "torchvision/resnet101"
