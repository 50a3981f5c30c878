"""What every captioning model offers: pixels in, logits out, trained or decoded.

A model knows nothing of files, archives or text: it sees pixels and token ids. Shapes use
B images, C captions an image, T tokens, V vocabulary entries, S pixels a side.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from captioning.decoding.stepper import Stepper
from captioning.errors import SettingsError
from captioning.models.encoder_settings import EncoderShare

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
    """A model that captions images. Pixels are uint8 (B, S, S, 3); it normalises them itself, on its own device.

        training   pixels ── stem ──▶ what a feature cache keeps ── finish ──▶ features ── forward ──▶ logits
        decoding   pixels ── see ───▶ tensors ─────────────────── features ──▶ features ── stepper ──▶ a `Stepper`

    `encode` is `stem` and `finish` in one. `see` does as much of it as another back end can run in PyTorch's place.
    """

    #: The settings that rebuild the model without any weights but its own.
    settings: Any
    vocab_size: int
    #: Beginnings of the names of parameters that come pretrained, for a learning rate of their own.
    pretrained_parts: tuple[str, ...] = ()
    #: The same of the image encoder.
    encoder_parts: tuple[str, ...] = ()
    #: Names of the methods that are worth compiling: tensors in, tensors out, no look at their values on the way.
    networks: tuple[str, ...] = ()
    #: Every part must run equally often, whatever the batch: other processes run theirs at the same time (FSDP).
    in_step: bool = False

    def encode(self, pixels: Tensor) -> Any:
        """Pixels (B, S, S, 3) uint8 to the images' features, as `forward` and `stepper` take them."""
        return self.finish(self.stem(pixels))

    @abstractmethod
    def see(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """All that a decoder needs of pixels (B, S, S, 3) uint8, as tensors (B, …).

        Tensors in, tensors out, and no look at their values on the way: another back end may run it in PyTorch's
        place (`captioning.backends`).
        """

    @abstractmethod
    def features(self, seen: tuple[Tensor, ...]) -> Any:
        """What `see` gave as `stepper` takes it."""

    @abstractmethod
    def stem(self, pixels: Tensor) -> Tensor:
        """What the frozen part of the image encoder makes of pixels (B, S, S, 3) uint8: (B, …) float.

        Without gradients and in evaluation mode, so that it can be kept and read again (a feature
        cache). Where nothing is frozen, the pixels as they are.
        """

    @abstractmethod
    def finish(self, stem: Tensor) -> Any:
        """The images' features from what `stem` gave, whatever float type it was kept in."""

    @abstractmethod
    def stem_identity(self) -> str | None:
        """SHA-256 over all that `stem` rests on (weights, structure), or None where nothing is frozen."""

    @abstractmethod
    def forward(self, features: Any, captions: Tensor, images: Tensor, said: Tensor | None = None) -> TeacherForced:
        """Score captions by teacher forcing.

        `captions` is (N, T) long: token ids without BOS, with EOS, padded with `PAD_TARGET`;
        `images` is (N,) long, the row of `features` that each caption describes.
        The targets are `captions` themselves: the shift by one is made here and nowhere else.
        `said` (N, T), in the place of `captions`, is what is read before each target.
        """

    @abstractmethod
    def read_text(self, captions: Tensor) -> TeacherForced:
        """Score captions (N, T) without any image, the decoder being a language model."""

    def attention(self, features: Any, captions: Tensor, images: Tensor) -> Tensor | None:  # noqa: ARG002
        """Where the model looks as it says each token: weights (N, T, rows, columns) float32 over the encoder's grid.

        `captions` (N, T) and `images` (N,) as `forward` takes them. The weights of a token sum to 1; those of
        `PAD_TARGET` mean nothing. None for a model that has no attention over a grid.
        """
        return None

    def embed_images(self, stem: Tensor) -> Tensor:  # noqa: ARG002
        """The images' embeddings (B, D), which contrastive training compares with text. Raises `SettingsError`."""
        raise SettingsError(f"model.kind {self.settings.kind} has no image embedding to compare with text.")

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of the same captioner under other training settings (a stage before)."""
        self.load_state_dict(state)

    @abstractmethod
    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes of `settings` with which this share of the image encoder learns, and all of the decoder.

        Raises `SettingsError` where the model cannot tell which part that is.
        """

    @abstractmethod
    def grow_vocabulary(self, size: int) -> None:
        """Make room for `size` tokens. New ones begin as the mean of those there are.

        So they are little likely, and the model says what it said, until they have learned (Hewitt
        2021, "Initializing new word embeddings for pretrained language models").
        """

    @property
    def plain_settings(self) -> Any:
        """The settings that a checkpoint holds: those that rebuild the model of a `plain_state`."""
        return self.settings

    def plain_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state of this model as a checkpoint holds it: without what only training needs."""
        return state

    def record_steps(self) -> None:
        """From now on have decoding's steps recorded on a GPU, and played back (`captioning.decoding.recorded`).

        Raises `SettingsError` for a model whose steps are few kernels as it is.
        """
        raise SettingsError(f"model.kind {self.settings.kind} has no steps to record: leave cuda_graphs out.")

    @abstractmethod
    def stepper(self, features: Any, prompt: list[int] | None = None) -> Stepper:
        """A `Stepper` over the images of `features`, for the decoding engine.

        `prompt` holds token ids that every caption continues (not part of the result).
        """

    @abstractmethod
    def max_positions(self) -> int | None:
        """The most tokens a caption can have, or None when there is no bound."""

    @property
    def has_attention(self) -> bool:
        """Whether `attention` tells anything."""
        return False

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device
