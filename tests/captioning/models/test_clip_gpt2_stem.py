"""The part of a CLIP-GPT2's image tower that can be cached between epochs, and its image embeddings."""

from typing import Any

import pytest
import torch

from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import SettingsError
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.tower_settings import ClipTower, CnnTower
from tests.captioning.models.clips import CNN, PIXELS, VOCABULARY, make, photos, tiny

TOWERS = {"vit": {}, "cnn": {"clip": CNN}}
EVERY = [(tower, mapper) for tower in TOWERS for mapper in ("mlp", "patches")]


def cnn(tune_from: str | None) -> dict[str, Any]:
    return {**CNN, "encoder": {**CNN["encoder"], "tune_from": tune_from}}


@pytest.mark.parametrize(("tower", "mapper"), EVERY)
@pytest.mark.parametrize("train", ["mapper", "decoder", "gpt2"])
def test_the_stem_of_a_frozen_tower_is_the_mappers_input(tower: str, mapper: str, train: str) -> None:
    model = make(tiny(mapper, train=train, **TOWERS[tower])).train()
    stem = model.stem(photos(3))
    assert not stem.requires_grad
    assert stem.shape[0] == 3
    assert torch.equal(model.encode_stem(stem), stem)
    assert torch.equal(model.encode(photos(3)), stem)
    torch.testing.assert_close(model.encode_stem(stem.half()), stem, rtol=1e-2, atol=1e-2)
    assert model.encode_stem(stem.half()).dtype == torch.float32
    assert model.prefix(model.encode_stem(stem.half())).shape == (3, 4, 16)


@pytest.mark.parametrize("mapper", ["mlp", "patches"])
@pytest.mark.parametrize("train", ["all", "clip"])
def test_the_stem_of_a_trained_cnn_is_its_frozen_part(mapper: str, train: str) -> None:
    model = make(tiny(mapper, train=train, clip=CNN)).train()
    stem = model.stem(photos(3))
    assert not stem.requires_grad
    assert stem.ndim == 4
    features = model.encode_stem(stem)
    frozen = make(tiny(mapper, train="decoder", clip=CNN))
    assert torch.equal(features, frozen.encode(photos(3)))
    features.square().sum().backward()
    learned = {name for name, p in model.clip.named_parameters() if p.grad is not None and p.grad.any()}
    assert any(name.startswith("encoder.trunk.model.blocks.2") for name in learned)
    assert not any(
        name.startswith(("encoder.trunk.model.conv_stem", "encoder.trunk.model.blocks.1")) for name in learned
    )
    assert ("visual_projection.weight" in learned) == (mapper == "mlp")
    assert torch.equal(model.encode_stem(stem.half()), model.encode_stem(stem.half().float()))


@pytest.mark.parametrize("clip", [{}, {"clip": cnn("all")}])
def test_a_tower_trained_as_a_whole_has_no_stem(clip: dict[str, Any]) -> None:
    model = make(tiny(train="all", **clip))
    pixels = photos(2)
    assert model.stem(pixels) is pixels
    assert model.stem_identity() is None
    assert model.encode_stem(pixels).requires_grad


def test_a_frozen_cnn_trains_its_projection() -> None:
    model = make(tiny(train="clip", clip=cnn(None)))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["clip.visual_projection.weight"]
    assert model.stem_identity() is not None


@pytest.mark.parametrize(("tower", "mapper"), EVERY)
def test_identity_depends_on_the_weights_that_are_used(tower: str, mapper: str) -> None:
    settings = tiny(mapper, train="decoder", **TOWERS[tower])
    identity = make(settings).stem_identity()
    assert identity is not None
    assert len(identity) == 64
    assert make(settings).stem_identity() == identity
    assert make(settings, seed=1).stem_identity() != identity
    model = make(settings)
    with torch.no_grad():
        for parameter in [*model.mapper.parameters(), *model.gpt2.parameters()]:
            parameter += 1
    assert model.stem_identity() == identity
    with torch.no_grad():
        next(model.clip.parameters()).add_(1e-3)
    assert model.stem_identity() != identity


def test_identity_depends_on_what_is_cached() -> None:
    identities = {make(tiny(mapper, train="decoder")).stem_identity() for mapper in ("mlp", "patches")}
    heads = make(tiny(train="decoder", clip={**tiny_clip(), "heads": 4})).stem_identity()
    assert len({*identities, heads}) == 3


def tiny_clip() -> dict[str, Any]:
    tower = tiny().clip
    assert isinstance(tower, ClipTower)
    values: dict[str, Any] = to_dict(tower)
    return values


def test_identity_of_a_partly_trained_cnn_ignores_trained_weights() -> None:
    model = make(tiny(train="all", clip=CNN))
    identity = model.stem_identity()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 1
    assert model.stem_identity() == identity
    with torch.no_grad():
        next(model.clip.encoder.parameters()).add_(1e-3)
    assert model.stem_identity() != identity


@pytest.mark.parametrize(("tower", "mapper"), EVERY)
@torch.no_grad()
def test_embeddings_are_clips_whatever_is_cached(tower: str, mapper: str) -> None:
    found = []
    for train in ("decoder", "clip"):
        model = make(tiny(mapper, train=train, **TOWERS[tower]))
        found.append(model.embed_images(model.stem(photos(3))))
    expected = model.clip(pixel_values=model.normalise(photos(3))).image_embeds
    assert expected.shape == (3, model.embedding_size)
    for embeddings in found:
        torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-5)


def test_a_contrastive_stage_trains_the_projection_for_a_mapper_of_patches_too() -> None:
    for tower in TOWERS.values():
        model = make(tiny("patches", train="clip", **tower))
        model.embed_images(model.stem(photos(2))).square().sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
            assert not parameter.requires_grad or name.startswith("clip."), name
        assert model.clip.visual_projection.weight.grad.any()


class TestCnnTower:
    def test_settings_tell_it_from_a_vision_transformer(self) -> None:
        assert isinstance(tiny(clip=CNN).clip, CnnTower)
        assert isinstance(tiny().clip, ClipTower)
        for settings in (tiny(clip=CNN), tiny()):
            sizes = to_dict(make(settings).settings)
            assert build(ClipGpt2Settings, sizes) == make(settings).settings
        with pytest.raises(SettingsError, match="'projection_dim'"):
            tiny(clip={**CNN, "projection_dims": 3})

    def test_any_image_size_works(self) -> None:
        model = ClipGpt2(tiny(clip=CNN), VOCABULARY, PreprocessSettings(size=48), pretrained=True)
        assert model.encode(torch.zeros(2, 48, 48, 3, dtype=torch.uint8)).shape == (2, 12)

    def test_the_embedding_is_the_mean_of_the_grid_projected(self) -> None:
        tower = make(tiny(clip=CNN)).clip
        seen = tower(pixel_values=torch.randn(2, 3, 64, 64))
        assert seen.last_hidden_state.shape == (2, 4, tower.encoder.channels)
        expected = seen.last_hidden_state.mean(1) @ tower.visual_projection.weight.T
        torch.testing.assert_close(seen.image_embeds, expected)

    def test_pretrained_parts_are_known(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert make(tiny(clip=CNN)).pretrained_prefixes == ()
        monkeypatch.setattr("captioning.models.encoders._load_in_order", lambda *_: None)
        own = make(tiny(clip={**CNN, "encoder": {**CNN["encoder"], "weights": "some.pth"}}))
        assert own.pretrained_prefixes == own.encoder_prefixes == ("clip.encoder.",)

    def test_a_saved_one_fetches_no_weights(self) -> None:
        settings = tiny(clip={**CNN, "encoder": {**CNN["encoder"], "weights": "nowhere.pth"}})
        again = ClipGpt2(make_resolved(settings), VOCABULARY, PIXELS, pretrained=False)
        assert again.pretrained_prefixes == ("clip.encoder.", "gpt2.")

    def test_its_statistics_stay_fixed_in_training(self) -> None:
        model = make(tiny(train="all", clip=CNN)).train()
        before = {name: value.clone() for name, value in model.clip.named_buffers()}
        model.encode(photos(4))
        assert all(torch.equal(value, before[name]) for name, value in model.clip.named_buffers())


def make_resolved(settings: ClipGpt2Settings) -> ClipGpt2Settings:
    from captioning.models.clip_gpt2_checks import resolved

    return resolved(settings, VOCABULARY)
