"""Where a model looks for each word of a given caption: attention weights by word."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from captioning.data.tokenizers import Tokenizer
from captioning.models.base import PAD_TARGET, CaptionModel


def attention(
    model: CaptionModel, features: Any, captions: Sequence[Sequence[int]]
) -> list[NDArray[np.float32] | None]:
    """Weights (T, rows, columns) for the T tokens of each image's caption; None where the model has no attention.

    `captions` holds one list of token ids for each image of `features`, end tokens left out.
    """
    results: list[NDArray[np.float32] | None] = [None] * len(captions)
    nonempty = [at for at, tokens in enumerate(captions) if tokens]
    if not nonempty:
        return results
    padded = torch.full((len(nonempty), max(len(captions[at]) for at in nonempty)), PAD_TARGET, device=model.device)
    for row, at in zip(padded, nonempty, strict=True):
        row[: len(captions[at])] = torch.tensor(captions[at], dtype=row.dtype, device=row.device)
    weights = model.attention(features, padded, torch.tensor(nonempty, device=model.device))
    if weights is not None:
        for at, each in zip(nonempty, weights.float().cpu().numpy(), strict=True):
            results[at] = each[: len(captions[at])]
    return results


def word_maps(
    tokenizer: Tokenizer, tokens: Sequence[int], weights: NDArray[np.float32] | None
) -> tuple[tuple[str, ...], NDArray[np.float32] | None]:
    """The W words of `tokens`, and their weights (W, rows, columns): the mean over each word's tokens."""
    words = tuple(tokenizer.decode(tokens).split())
    if weights is None or not words:
        return words, None
    # A token belongs to the last word of the text that ends with it.
    word_numbers = [len(tokenizer.decode(tokens[: at + 1]).split()) - 1 for at in range(len(tokens))]
    words_of_tokens = np.clip(word_numbers, 0, len(words) - 1)
    maps = np.zeros((len(words), *weights.shape[1:]), np.float32)
    np.add.at(maps, words_of_tokens, weights)
    counts = np.bincount(words_of_tokens, minlength=len(words)).clip(min=1)
    maps /= counts[:, None, None].astype(np.float32)
    return words, maps
