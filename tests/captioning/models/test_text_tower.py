"""The text encoder of contrastive training."""

import torch
from torch.nn import functional

from captioning.models.base import PAD_TARGET
from captioning.models.text_tower import TextTower

CAPTIONS = torch.tensor([[5, 6, 7, 9], [8, 9, PAD_TARGET, PAD_TARGET], [6, 5, 7, 9]])


def tower(dropout: float = 0.0) -> TextTower:
    torch.manual_seed(0)
    sizes = {"vocab_size": 10, "max_tokens": 8, "width": 16, "layers": 2, "heads": 2, "embedding_size": 6}
    made = TextTower(**sizes, dropout=dropout)
    with torch.no_grad():
        # Initial embeddings differ by less than the tolerance.
        made.tokens.weight *= 50
        made.positions.weight *= 50
    return made


def test_each_caption_has_an_embedding_of_its_own() -> None:
    made = tower().eval()
    embeddings = made(CAPTIONS)
    assert embeddings.shape == (3, 6)
    # The same tokens in another order have another embedding.
    assert not torch.allclose(embeddings[0], embeddings[2], atol=1e-2)


def test_padding_changes_nothing() -> None:
    made = tower().eval()
    wide = functional.pad(CAPTIONS, (0, 3), value=PAD_TARGET)
    torch.testing.assert_close(made(wide), made(CAPTIONS), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(made(CAPTIONS[1:2, :2]), made(CAPTIONS)[1:2], rtol=1e-4, atol=1e-5)


def test_every_used_weight_gets_a_gradient() -> None:
    made = tower().train()
    made(CAPTIONS).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in made.parameters())
    assert made.tokens.weight.grad is not None
    assert not made.tokens.weight.grad[4].any()


def test_dropout_is_for_training_only() -> None:
    made = tower(dropout=0.5)
    assert not torch.equal(made(CAPTIONS), made(CAPTIONS))
    made.eval()
    assert torch.equal(made(CAPTIONS), made(CAPTIONS))
