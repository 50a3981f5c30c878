"""The mappers from image features to GPT-2's prefix."""

import pytest
import torch

from captioning.config import build
from captioning.errors import SettingsError
from captioning.models.mapper import make_mapper
from captioning.models.mapper_settings import MapperSettings


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_one_embedding_becomes_a_prefix(kind: str) -> None:
    settings = build(MapperSettings, {"kind": kind, "prefix_length": 5, "layers": 2, "heads": 2})
    mapper = make_mapper(settings, feature_size=12, width=8, dropout=0.0)
    assert mapper(torch.randn(3, 12)).shape == (3, 5, 8)


def test_patch_states_become_a_prefix() -> None:
    settings = MapperSettings(kind="transformer", source="patches", prefix_length=4, layers=1, heads=2)
    mapper = make_mapper(settings, feature_size=12, width=8, dropout=0.0)
    assert mapper(torch.randn(3, 7, 12)).shape == (3, 4, 8)


def test_the_learned_constants_become_the_prefix() -> None:
    torch.manual_seed(0)
    settings = MapperSettings(kind="transformer", source="patches", prefix_length=4, layers=2, heads=2)
    mapper = make_mapper(settings, feature_size=12, width=8, dropout=0.0)
    states = torch.randn(1, 7, 12)
    # Attention has no order: the constants attend to the same set of states, so the prefix stays.
    torch.testing.assert_close(mapper(states.flip(1)), mapper(states))
    constants = dict(mapper.named_parameters())["constants"]
    before = mapper(states)
    with torch.no_grad():
        constants[1] += 1
    assert not torch.allclose(mapper(states)[:, 1], before[:, 1])


def test_an_image_does_not_depend_on_its_batch() -> None:
    torch.manual_seed(0)
    settings = MapperSettings(kind="transformer", prefix_length=3, layers=2, heads=2)
    mapper = make_mapper(settings, feature_size=12, width=8, dropout=0.0)
    features = torch.randn(4, 12)
    torch.testing.assert_close(mapper(features)[2:3], mapper(features[2:3]))


@pytest.mark.parametrize("kind", ["mlp", "transformer"])
def test_every_weight_gets_a_gradient(kind: str) -> None:
    settings = build(MapperSettings, {"kind": kind, "prefix_length": 3, "layers": 2, "heads": 2})
    mapper = make_mapper(settings, feature_size=12, width=8, dropout=0.1)
    mapper(torch.randn(2, 12)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in mapper.parameters())


def test_the_sizes_of_clipcap_are_the_defaults() -> None:
    mlp = make_mapper(MapperSettings(), feature_size=512, width=768, dropout=0.0)
    assert [tuple(p.shape) for p in mlp.parameters() if p.ndim == 2] == [(3840, 512), (7680, 3840)]
    transformer = make_mapper(MapperSettings(kind="transformer"), feature_size=16, width=64, dropout=0.0)
    names = [name for name, _ in transformer.named_parameters()]
    assert sum(name.endswith("queries_keys_values.weight") for name in names) == 8


def test_an_mlp_cannot_read_patches() -> None:
    with pytest.raises(SettingsError, match="needs kind 'transformer'"):
        build(MapperSettings, {"kind": "mlp", "source": "patches"})


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match=r"mapper\.heads 3"):
        make_mapper(MapperSettings(kind="transformer", heads=3), feature_size=4, width=8, dropout=0.0)
