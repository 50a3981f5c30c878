"""CNN-LSTM: decoding agrees with teacher forcing, with and without attention."""

from dataclasses import replace

import pytest
import torch

from captioning.config import build
from captioning.errors import SettingsError
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.cnn_lstm import CnnLstm
from captioning.models.cnn_lstm_settings import CnnLstmSettings
from captioning.models.encoder_settings import EncoderSettings
from captioning.models.encoders import GridEncoder
from tests.captioning.decoding.fakes import LogitsStepper
from tests.tiny import PREPROCESS, tiny_model, tiny_settings


def pixels(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


CAPTIONS = torch.tensor([[5, 6, 7, 1], [6, 1, PAD_TARGET, PAD_TARGET], [7, 8, 1, PAD_TARGET]])
IMAGES = torch.tensor([0, 0, 1])


@pytest.mark.parametrize("attention", [True, False])
@torch.no_grad()
def test_the_stepper_gives_the_logits_of_teacher_forcing(attention: bool) -> None:
    model = tiny_model(tiny_settings(attention=attention))
    features = model.encode(pixels(2))
    logits = model(features, CAPTIONS, IMAGES).logits
    assert logits.shape == (int((CAPTIONS != PAD_TARGET).sum()), model.vocab_size)

    stepper = LogitsStepper(model.stepper(features))
    steps = [stepper.start()[IMAGES]]
    rows = IMAGES
    for at in range(CAPTIONS.shape[1] - 1):
        steps.append(stepper.advance(CAPTIONS[:, at].clamp(min=0), rows))
        rows = torch.arange(len(CAPTIONS))
    stepped = torch.stack(steps, dim=1)[CAPTIONS != PAD_TARGET]
    torch.testing.assert_close(stepped, logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_captions_of_one_image_may_be_as_many_as_there_are_images() -> None:
    """As in sampling, when all captions of another image have ended with their first token."""
    model = tiny_model()
    for weight in model.attend.parameters():
        weight.mul_(3)
    features = model.encode(pixels(2))
    stepper = LogitsStepper(model.stepper(features))
    stepper.start()
    found = stepper.advance(torch.tensor([[5], [6]]), torch.tensor([[1], [1]]))
    taught = model(features, torch.tensor([[5, 7], [6, 7]]), torch.tensor([1, 1])).logits.view(2, 2, -1)[:, 1]
    torch.testing.assert_close(found, taught, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_logits_are_bitwise_the_same_in_any_batch() -> None:
    model = tiny_model()
    features = model.encode(pixels(9))
    together = LogitsStepper(model.stepper(features)).start()
    for count in (1, 2, 3, 5):
        some = type(features)(*(part[:count] for part in (features.keys, features.values, features.pooled)))
        assert torch.equal(LogitsStepper(model.stepper(some)).start(), together[:count])


def test_text_is_scored_without_an_image() -> None:
    """No attention, and zeros for the pooled feature."""
    model = tiny_model(tiny_settings(attention=False))
    empty = model.encode(pixels(1))
    blind = type(empty)(empty.keys, empty.values, torch.zeros_like(empty.pooled))
    expected = model(blind, CAPTIONS, torch.zeros_like(IMAGES)).logits
    torch.testing.assert_close(model.forward_text(CAPTIONS).logits, expected)

    attentive = tiny_model(tiny_settings(attention=True))
    attentive.forward_text(CAPTIONS).logits.sum().backward()
    taught = {name.split(".")[0] for name, weight in attentive.named_parameters() if weight.grad is not None}
    assert taught == {"embed", "initial", "lstm", "speak", "bias"}


@torch.no_grad()
def test_decoding_continues_a_prompt() -> None:
    model = tiny_model()
    features = model.encode(pixels(2))
    stepper = LogitsStepper(model.stepper(features))
    stepper.start()
    rows = torch.arange(2)
    stepper.advance(torch.tensor([5, 5]), rows)
    expected = stepper.advance(torch.tensor([6, 6]), rows)
    torch.testing.assert_close(LogitsStepper(model.stepper(features, prompt=[5, 6])).start(), expected)


@torch.no_grad()
def test_logits_depend_on_the_grid() -> None:
    model = tiny_model()
    features = model.encode(pixels(1))
    swapped = type(features)(features.keys, features.values.flip(0) + 1.0, features.pooled)
    plain, changed = (LogitsStepper(model.stepper(each)).start() for each in (features, swapped))
    assert not torch.allclose(plain, changed)


def test_the_attention_penalty_has_one_number_a_target() -> None:
    settings = CnnLstmSettings(
        encoder=EncoderSettings(name="timm/test_efficientnet", weights="random"),
        heads=2,
        embedding_size=16,
        hidden_size=16,
        attention_penalty=1.0,
    )
    model = tiny_model(settings)
    scored = model(model.encode(pixels(2)), CAPTIONS, IMAGES)
    assert scored.penalty is not None
    assert scored.penalty.shape == scored.logits.shape[:1]
    assert bool((scored.penalty >= 0).all())


def test_an_encoder_that_starts_random_is_not_pretrained() -> None:
    """Pretrained parts have a learning rate of their own."""
    vocabulary = Vocabulary(10, 1, 2)
    assert CnnLstm(tiny_settings(), vocabulary, PREPROCESS, pretrained=True).pretrained_prefixes == ()
    assert CnnLstm(tiny_settings(), vocabulary, PREPROCESS, pretrained=False).pretrained_prefixes == ("encoder.",)
    loaded = CnnLstm(replace(tiny_settings(), encoder=EncoderSettings()), vocabulary, PREPROCESS, pretrained=True)
    assert loaded.pretrained_prefixes == ("encoder.",)


def test_only_the_named_part_of_the_encoder_is_trained() -> None:
    encoder = GridEncoder(
        EncoderSettings(name="timm/test_efficientnet", weights="random", tune_from="blocks.2"), pretrained=True
    )
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    assert any(".blocks.2." in name for name in trained)
    assert any("conv_head" in name for name in trained)
    assert not any(".blocks.1." in name or "conv_stem" in name for name in trained)


def test_the_trunk_stays_in_evaluation_mode() -> None:
    model = tiny_model(tiny_settings(tune_from="all")).train()
    assert model.dropout.training
    assert not any(module.training for module in model.encoder.trunk.modules())


def test_a_trunk_that_starts_random_can_learn_its_statistics() -> None:
    encoder = GridEncoder(
        EncoderSettings(name="timm/test_resnet", weights="random", tune_from="all", norm_statistics="learned"),
        pretrained=True,
    )
    before = {name: value.clone() for name, value in encoder.named_buffers()}
    encoder.eval()(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in encoder.named_buffers())
    encoder.train()(torch.randn(2, 3, 32, 32))
    assert any(not torch.equal(value, before[name]) for name, value in encoder.named_buffers())


def test_torchvision_encoders_by_name() -> None:
    encoder = GridEncoder(EncoderSettings(name="torchvision/resnet18", weights="random"), pretrained=True)
    assert encoder(torch.zeros(1, 3, 64, 64)).shape == (1, 4, 512)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (EncoderSettings(name="resnet50"), "timm/NAME or torchvision/NAME"),
        (EncoderSettings(name="timm/no_such_net"), "timm has no encoder"),
        (EncoderSettings(name="torchvision/no_such_net"), "torchvision has no encoder"),
        (EncoderSettings(name="timm/test_efficientnet", weights="random", tune_from="blocks.99"), "its parts"),
    ],
)
def test_wrong_encoders_are_explained(settings: EncoderSettings, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        GridEncoder(settings, pretrained=True)


def test_frozen_layers_cannot_learn_statistics() -> None:
    with pytest.raises(SettingsError, match="set tune_from to all"):
        build(EncoderSettings, {"norm_statistics": "learned", "tune_from": "blocks.2"})
