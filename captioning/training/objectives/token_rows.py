"""Captions as padded rows of token ids with EOS."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.data.tokenizers import Tokenizer
from captioning.models.base import PAD_TARGET


def token_rows(captions: Sequence[str], tokenizer: Tokenizer, max_tokens: int) -> Tensor:
    """`captions` as (N, T) long, each truncated to `max_tokens` including EOS, padded with `PAD_TARGET`."""
    rows = [[*tokenizer.encode(caption)[: max_tokens - 1], tokenizer.eos_id] for caption in captions]
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[PAD_TARGET] * (longest - len(row))] for row in rows])
