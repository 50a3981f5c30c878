"""What the decoding engine asks of a model: logits for the next token, row by row.

The engine knows tokens and scores. It does not know images, text or which model runs.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Stepper(Protocol):
    """A model's decoder with its cached state, driven one token at a time.

    Rows are hypotheses. After `start` there is one row an image, in the order of the images.
    Each `advance` chooses its rows among the rows of the call before, so that beams are
    expanded, re-ordered and finished images dropped by one and the same argument.
    """

    vocab_size: int

    def start(self) -> Tensor:
        """Logits (B, V) float32 for the first token of every image."""
        ...

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` (R,) to the previous rows named by `rows` (R,); logits (R, V) float32."""
        ...
