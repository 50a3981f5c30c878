"""What the decoding engine needs from a model: hidden states, and the output layer that scores them.

The engine works on tokens and scores. It does not know images, text or which model runs.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from captioning.decoding.lm_head import LMHead


def as_groups(rows: Tensor | Sequence[int], device: torch.device) -> tuple[Tensor, bool]:
    """The `rows` argument of `Stepper.advance` as (N, K), and whether it was given so; (R,) becomes (R, 1)."""
    groups = torch.as_tensor(rows, device=device)
    grouped = groups.ndim == 2
    return (groups if grouped else groups[:, None]), grouped


class Stepper(Protocol):
    """A model's decoder with its cached state, driven one token at a time.

    Rows are hypotheses. After `start` there is one row an image, in the order of the images.
    Each `advance` selects its rows from those of the previous call: this one argument expands
    and reorders beams and drops finished images.
    """

    #: Scores the states.
    lm_head: LMHead

    def start(self) -> Tensor:
        """States (B, E) that predict the first token of every image."""
        ...

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the previous `rows`; returns the states (R, E) that predict the next tokens.

        Both are (R,); or (N, K), where each group of K hypotheses belongs to one image and has its
        parents in one previous group, and groups keep their order. What the hypotheses of an image
        share then need not be copied.
        """
        ...
