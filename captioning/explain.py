"""Where a model looked for each word of a caption: attention weights by word.

Knows models and tokenizers, not how a caption was found.
"""

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
    """Weights (T, rows, columns) of the T tokens of each image's caption; None where the model has no attention.

    `captions` holds one list of token ids for each image of `features`, end tokens left out.
    """
    found: list[NDArray[np.float32] | None] = [None] * len(captions)
    spoken = [at for at, tokens in enumerate(captions) if tokens]
    if not spoken:
        return found
    padded = torch.full((len(spoken), max(len(captions[at]) for at in spoken)), PAD_TARGET, device=model.device)
    for row, at in zip(padded, spoken, strict=True):
        row[: len(captions[at])] = torch.tensor(captions[at], dtype=row.dtype, device=row.device)
    weights = model.attention(features, padded, torch.tensor(spoken, device=model.device))
    if weights is not None:
        for at, each in zip(spoken, weights.float().cpu().numpy(), strict=True):
            found[at] = each[: len(captions[at])]
    return found


def word_maps(
    tokenizer: Tokenizer, tokens: Sequence[int], weights: NDArray[np.float32] | None
) -> tuple[tuple[str, ...], NDArray[np.float32] | None]:
    """The words W that `tokens` spell, and the weights (W, rows, columns): the mean over each word's tokens."""
    words = tuple(tokenizer.decode(tokens).split())
    if weights is None or not words:
        return words, None
    # A token belongs to the last word that is there once it has been said.
    owners = [len(tokenizer.decode(tokens[: at + 1]).split()) - 1 for at in range(len(tokens))]
    of_word = np.clip(owners, 0, len(words) - 1)
    maps = np.zeros((len(words), *weights.shape[1:]), np.float32)
    np.add.at(maps, of_word, weights)
    counts = np.bincount(of_word, minlength=len(words)).clip(min=1)
    maps /= counts[:, None, None].astype(np.float32)
    return words, maps
