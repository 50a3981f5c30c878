"""What every captioning model offers: pixels in, logits out, trained or decoded.

A model knows nothing of files, archives or text: it sees pixels and token ids. Shapes use
B images, C captions an image, T tokens, V vocabulary entries, S pixels a side.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captioning.decoding.stepper import Stepper

#: Target id that is not learned from (the default `ignore_index` of PyTorch's cross entropy).
PAD_TARGET = -100


@dataclass(frozen=True)
class Vocabulary:
    """What a model must know of the tokenizer: the number of tokens, and which begins and ends a caption."""

    size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class TeacherForced:
    """What a model makes of captions it is shown.

    `logits` is (K, V) float, one row for each of the K targets that are not `PAD_TARGET`, in the
    row-major order of the captions; `penalty` is (K,) float, what the objective adds for each
    of them (an attention term, say), or None.
    """

    logits: Tensor
    penalty: Tensor | None = None


class CaptionModel(nn.Module, ABC):
    """A model that captions images.

    Training calls `forward`, decoding calls `encode` and `stepper`. Pixels are uint8
    (B, S, S, 3); the model normalises them itself, on its own device.
    """

    #: The settings that rebuild the model without any weights but its own.
    settings: Any
    vocab_size: int
    #: Beginnings of the names of parameters that come pretrained, for a learning rate of their own.
    pretrained_parts: tuple[str, ...] = ()

    @abstractmethod
    def encode(self, pixels: Tensor) -> Any:
        """Pixels (B, S, S, 3) uint8 to the images' features, as `forward` and `stepper` take them."""

    @abstractmethod
    def forward(self, features: Any, captions: Tensor, images: Tensor) -> TeacherForced:
        """Score captions by teacher forcing.

        `captions` is (N, T) long: token ids without BOS, with EOS, padded with `PAD_TARGET`;
        `images` is (N,) long, the row of `features` that each caption describes.
        The targets are `captions` themselves: the shift by one is made here and nowhere else.
        """

    @abstractmethod
    def stepper(self, features: Any, prompt: list[int] | None = None) -> Stepper:
        """A `Stepper` over the images of `features`, for the decoding engine.

        `prompt` holds token ids that every caption continues (not part of the result).
        """

    @abstractmethod
    def max_positions(self) -> int | None:
        """The most tokens a caption can have, or None when there is no bound."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
