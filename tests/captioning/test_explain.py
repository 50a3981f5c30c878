"""`Captioner.explain`: the caption of `caption`, and the attention weights of decoding."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from captioning.captioner import Captioner
from captioning.decoding.settings import DecodingSettings
from captioning.explain import word_maps
from tests.tiny import PREPROCESS, tiny_model, tiny_settings, tiny_tokenizer


def captioner(*, attention: bool = True) -> Captioner:
    model = tiny_model(tiny_settings(attention=attention))
    return Captioner(model, tiny_tokenizer(), PREPROCESS, DecodingSettings(beam_size=3, max_new_tokens=6))


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (count, 32, 32, 3), dtype=np.uint8)


@pytest.mark.parametrize("prompt", [None, "a red"])
def test_the_caption_is_that_of_caption_and_every_word_has_a_map(prompt: str | None) -> None:
    tiny, pixels = captioner(), pictures(3)
    said = tiny.caption_pixels(pixels, prompt=prompt)
    for explained, caption in zip(tiny.explain_pixels(pixels, prompt=prompt), said, strict=True):
        assert explained.caption == caption
        assert " ".join(explained.words) == caption.text
        if caption.text:
            assert explained.weights is not None
            assert explained.weights.dtype == np.float32
            assert explained.weights.shape[0] == len(explained.words)
            assert explained.weights.sum((1, 2)) == pytest.approx(1, abs=1e-5)
    alone = tiny.explain(pixels[1], prompt=prompt)
    assert alone.caption.text == said[1].text


def test_weights_are_those_of_decoding() -> None:
    tiny, pixels = captioner(), pictures(1)
    explained = tiny.explain_pixels(pixels, beam_size=1)[0]
    assert explained.weights is not None
    model, tokens = tiny.model, tiny.tokenizer.encode(explained.caption.text)
    with torch.inference_mode():
        features = tiny.encode(pixels)
        stepper = model.stepper(features, None)
        stepper.start()
        for at in range(len(tokens)):
            heads = model.attend.heads
            query = model.attend.query(stepper._hidden).view(heads, -1)
            keys = features.keys[0]
            scores = torch.einsum("ad,ald->al", query, keys) * query.shape[1] ** -0.5
            expected = scores.softmax(-1).mean(0).numpy()
            assert explained.weights[at].ravel() == pytest.approx(expected, abs=1e-5)
            stepper.advance(torch.tensor([tokens[at]]), torch.tensor([0]))


def test_without_attention_there_are_words_and_no_weights() -> None:
    tiny = captioner(attention=False)
    explained = tiny.explain_pixels(pictures(1))[0]
    assert not tiny.model.has_attention
    assert explained.weights is None


def test_a_word_of_several_tokens_has_their_mean() -> None:
    class Pieces:
        def decode(self, ids: list[int]) -> str:
            return "".join(["a", " mo", "tor", "bike"][each] for each in ids)

    weights = np.arange(16, dtype=np.float32).reshape(4, 2, 2)
    words, maps = word_maps(Pieces(), [0, 1, 2, 3], weights)
    assert words == ("a", "motorbike")
    assert maps is not None
    assert np.allclose(maps, [weights[0], weights[1:].mean(0)])
