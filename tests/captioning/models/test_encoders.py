"""The frozen stem of an encoder, whose output can be cached, and the rest."""

import copy
from pathlib import Path

import pytest
import torch

from captioning.errors import CheckpointError
from captioning.models.base import PAD_TARGET
from captioning.models.encoder_settings import EncoderSettings
from captioning.models.encoders import GridEncoder
from tests.tiny import tiny_model, tiny_settings

#: Name, part to train from, pieces of the stem in front of it.
FAMILIES = [
    ("timm/test_efficientnet", "blocks.2", ("conv_stem", "bn1", "blocks.0", "blocks.1")),
    ("timm/test_efficientnet", "conv_head", ("conv_stem", "bn1", "blocks.0", "blocks.1", "blocks.2")),
    ("timm/test_resnet", "layer3", ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2")),
    ("torchvision/resnet18", "layer4", ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3")),
    ("torchvision/mobilenet_v3_small", "2", ("0", "1")),
]


def encoder(name: str = "timm/test_efficientnet", tune_from: str | None = None, seed: int = 0) -> GridEncoder:
    torch.manual_seed(seed)
    made = GridEncoder(EncoderSettings(name=name, weights="random", tune_from=tune_from), pretrained=True)
    for module in made.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            # Initial statistics change nothing: give every layer others.
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return made


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("name", "tune_from", "frozen"), FAMILIES)
def test_stem_and_rest_are_the_encoder(name: str, tune_from: str, frozen: tuple[str, ...]) -> None:
    made = encoder(name, tune_from)
    whole = made.trunk(images()).flatten(2).transpose(1, 2)
    stem = made.stem(images())
    assert torch.equal(made.rest(stem), whole)
    assert torch.equal(made(images()), whole)
    assert stem.shape != images().shape

    seen: list[str] = []
    for module_name, module in made.trunk.named_modules():
        short = module_name.removeprefix("model.")
        module.register_forward_hook(lambda *_, short=short: seen.append(short))
    made.stem(images())
    assert tuple(name for name in seen if name in frozen) == frozen
    assert not any(part == tune_from or part.startswith(f"{tune_from}.") for part in seen)


@pytest.mark.parametrize("name", ["timm/test_efficientnet", "timm/mobilenetv3_small_050", "torchvision/resnet18"])
def test_all_or_nothing_frozen_works_for_every_encoder(name: str) -> None:
    frozen, tuned = encoder(name), encoder(name, "all")
    assert torch.equal(frozen.rest(frozen.stem(images())), frozen.trunk(images()).flatten(2).transpose(1, 2))
    assert frozen.stem(images()).shape[1] == frozen.channels
    assert frozen.stem_identity() is not None
    assert torch.equal(tuned.stem(images()), images())
    assert torch.equal(tuned(images()), frozen(images()))
    assert tuned.stem_identity() is None


def test_a_partly_trained_encoder_that_is_no_known_chain_has_no_stem() -> None:
    made = encoder("timm/mobilenetv3_small_050", "blocks.3")
    assert torch.equal(made.stem(images()), images())
    assert made.stem_identity() is None
    assert torch.equal(made(images()), made.trunk(images()).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(("name", "tune_from", "frozen"), FAMILIES)
def test_only_the_rest_has_gradients(name: str, tune_from: str, frozen: tuple[str, ...]) -> None:
    made = encoder(name, tune_from).train()
    stem = made.stem(images().requires_grad_())
    assert not stem.requires_grad
    made.rest(stem).sum().backward()
    trained = {name for name, p in made.named_parameters() if p.grad is not None}
    assert trained == {name for name, p in made.named_parameters() if p.requires_grad}
    assert trained
    pieces = {name.removeprefix("trunk.").removeprefix("model.") for name in trained}
    assert not any(name.startswith(f"{piece}.") for name in pieces for piece in frozen)


def test_the_identity_depends_only_on_frozen_weights() -> None:
    made = encoder(tune_from="blocks.2")
    identity = made.stem_identity()
    assert identity == encoder(tune_from="blocks.2").stem_identity()
    assert identity == copy.deepcopy(made).stem_identity()
    with torch.no_grad():
        made.trunk.model.conv_head.weight += 1
    assert made.stem_identity() == identity
    with torch.no_grad():
        made.trunk.model.conv_stem.weight[0, 0, 0, 0] += 1e-3
    assert made.stem_identity() != identity
    others = [
        encoder(tune_from="blocks.2", seed=1),
        encoder(tune_from="blocks.1"),
        encoder(),
        encoder("timm/test_resnet", "layer3"),
    ]
    assert len({identity, *(other.stem_identity() for other in others)}) == 5


def test_the_statistics_of_the_stem_belong_to_its_identity() -> None:
    made = encoder()
    before = made.stem_identity()
    made.trunk.model.bn1.running_mean += 1
    assert made.stem_identity() != before


def test_a_copy_runs_its_own_weights() -> None:
    made = encoder(tune_from="blocks.2")
    copied = copy.deepcopy(made)
    with torch.no_grad():
        copied.trunk.model.conv_stem.weight.zero_()
    assert not torch.equal(copied.stem(images()), made.stem(images()))


def pixels(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("tune_from", [None, "blocks.1", "all"])
@torch.no_grad()
def test_stem_and_encode_stem_are_the_encoder(tune_from: str | None) -> None:
    model = tiny_model(tiny_settings(tune_from=tune_from))
    stem = model.stem(pixels())
    whole = model.encoder.trunk(model.normalise(pixels())).flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.encode_stem(stem).pooled, model.pool(whole.mean(1)))
    torch.testing.assert_close(model.encode(pixels()).values, model.encode_stem(stem).values)
    if tune_from == "all":
        assert stem.dtype == torch.uint8
        assert model.stem_identity() is None
    else:
        assert stem.dtype == torch.float32
        assert model.stem_identity() is not None


@pytest.mark.parametrize("tune_from", [None, "blocks.1"])
def test_a_stem_cached_in_half_precision_gives_nearly_the_same_and_trains(tune_from: str | None) -> None:
    model = tiny_model(tiny_settings(tune_from=tune_from)).train()
    kept = model.stem(pixels()).half()
    features = model.encode_stem(kept)
    assert features.pooled.dtype == torch.float32
    torch.testing.assert_close(features.pooled, model.encode(pixels()).pooled, rtol=2e-2, atol=2e-3)
    features.pooled.sum().backward()
    assert model.pool[0].weight.grad is not None
    tuned = [p for p in model.encoder.parameters() if p.requires_grad]
    assert bool(tuned) == (tune_from is not None)
    assert all(p.grad is not None for p in tuned)


@torch.no_grad()
def test_context_replaces_the_inputs_and_not_the_targets() -> None:
    model = tiny_model()
    features = model.encode(pixels(1))
    captions = torch.tensor([[5, 6, 7, 1], [8, 9, 1, PAD_TARGET]])
    said = torch.tensor([[5, 9, 7, 3], [8, 9, 4, 3]])
    images = torch.zeros(2, dtype=torch.long)
    plain = model(features, captions, images).logits
    mixed = model(features, captions, images, said).logits
    assert mixed.shape == plain.shape == (7, model.vocab_size)
    # Up to the first token that differs nothing changes; the last token is no input.
    assert torch.equal(mixed[:2], plain[:2])
    assert not torch.allclose(mixed[2:4], plain[2:4])
    torch.testing.assert_close(mixed[4:], plain[4:])
    torch.testing.assert_close(model(features, said, images).logits[:4], mixed[:4])


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("gone.pth", None, "do not exist"),
        ("cut.pth", b"PK\x03\x04 cut", "cannot be read"),
        ("cut.safetensors", b"\xff\xff", "cannot be read"),
        ("list.pth", [1, 2], "a list, not a state dict"),
        ("other.pth", {"a": torch.zeros(3)}, "do not fit the encoder"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(name: str, content: object, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=told) as caught:
        GridEncoder(EncoderSettings(name="timm/test_efficientnet", weights=str(path)), pretrained=True)
    assert str(path) in str(caught.value)
