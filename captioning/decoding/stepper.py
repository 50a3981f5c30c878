"""What the decoding engine asks of a model: states that the vocabulary scores, row by row.

The engine knows tokens and scores. It does not know images, text or which model runs.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from captioning.decoding.vocabulary import Vocabulary


def as_lines(rows: Tensor | Sequence[int], device: torch.device) -> tuple[Tensor, bool]:
    """The rows that `Stepper.advance` is given as (N, K), K one where they are (R,); and whether they came as lines."""
    lines = torch.as_tensor(rows, device=device)
    ordered = lines.ndim == 2
    return (lines if ordered else lines[:, None]), ordered


class Stepper(Protocol):
    """A model's decoder with its cached state, driven one token at a time.

    Rows are hypotheses. After `start` there is one row an image, in the order of the images.
    Each `advance` chooses its rows among the rows of the call before, so that beams are
    expanded, re-ordered and finished images dropped by one and the same argument.
    """

    #: What scores the states.
    vocabulary: Vocabulary

    def start(self) -> Tensor:
        """States (B, E) that tell the first token of every image."""
        ...

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the previous rows named by `rows`; states (R, E) that tell the next ones.

        Both are (R,); or (N, K) where each line is K hypotheses of one image whose parents are of
        one line, lines keeping their order, so that what an image's hypotheses share need not be
        copied.
        """
        ...
