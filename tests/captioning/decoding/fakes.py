"""Small steppers that stand in for models in the decoding tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from captioning.decoding.lm_head import LMHead
from captioning.decoding.stepper import Stepper


def identity_head(size: int) -> LMHead:
    """The output layer of a stepper whose states are the logits themselves."""
    return LMHead(torch.eye(size))


class LogitsStepper:
    """A stepper that returns logits (R, V) in place of states."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def start(self) -> Tensor:
        return self.stepper.lm_head.logits(self.stepper.start())

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        return self.stepper.lm_head.logits(self.stepper.advance(tokens, rows))


class TableStepper:
    """A language model whose next-token logits depend on the image and the last two tokens.

    `first` is (B, V), `table` (B, V, V, V): image, token before last (0 where there is none), last.
    """

    def __init__(self, first: Tensor, table: Tensor) -> None:
        self.first, self.table = first, table
        self.vocab_size = first.shape[1]
        self.lm_head = identity_head(self.vocab_size)
        self.rows_seen: list[int] = []

    @classmethod
    def random(
        cls, images: int, vocab: int, *, seed: int, sharpness: float = 2.0, eos_bonus: float = 0.0
    ) -> "TableStepper":
        """Random logits with standard deviation `sharpness`; token 0, the end, gets a bonus after the first token."""
        generator = torch.Generator().manual_seed(seed)
        first = torch.randn(images, vocab, generator=generator) * sharpness
        table = torch.randn(images, vocab, vocab, vocab, generator=generator) * sharpness
        table[..., 0] += eos_bonus
        return cls(first, table)

    def only(self, images: Sequence[int]) -> "TableStepper":
        rows = list(images)
        return TableStepper(self.first[rows], self.table[rows])

    def start(self) -> Tensor:
        count = len(self.first)
        self._image = torch.arange(count)
        self._last = torch.zeros(count, dtype=torch.long)
        self.rows_seen = [count]
        return self.first.clone()

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        places, tokens = torch.as_tensor(rows).flatten(), tokens.flatten()
        self._image, before = self._image[places], self._last[places]
        self._last = tokens
        self.rows_seen.append(len(tokens))
        return self.table[self._image, before, tokens].clone()

    def log_prob(self, image: int, tokens: Sequence[int]) -> float:
        """Log-probability of a whole sequence, the end token included in `tokens` where it has one."""
        total, before, last = 0.0, 0, 0
        for place, token in enumerate(tokens):
            logits = self.first[image] if place == 0 else self.table[image, before, last]
            total += float(logits.double().log_softmax(0)[token])
            before, last = last, token
        return total
