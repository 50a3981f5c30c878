"""The interface of captioning models: pixels and token ids in, logits out, for training and decoding.

Files, archives and text are left to others. Shapes: B images, N captions, T tokens, K targets,
V vocabulary entries, S pixels a side.
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

#: Target id that the loss ignores (the default `ignore_index` of PyTorch's cross entropy).
PAD_TARGET = -100


@dataclass(frozen=True)
class Vocabulary:
    """What a model needs of the tokenizer: the number of tokens, and those that begin and end a caption."""

    size: int
    bos_id: int
    eos_id: int


@dataclass(frozen=True)
class TeacherForced:
    """A model's output for given captions.

    `logits` is (K, V) float, one row for each of the K targets that are not `PAD_TARGET`, in the
    row-major order of the captions; `penalty` is (K,) float, added to the objective for each target
    (an attention term, say), or None.
    """

    logits: Tensor
    penalty: Tensor | None = None


class CaptionModel(nn.Module, ABC):
    """A model that captions images. Pixels are uint8 (B, S, S, 3); the model normalises them on its own device.

        training   pixels ── stem ──▶ stem output ── encode_stem ──▶ features ── forward ──▶ logits
        decoding   pixels ── encoder_outputs ──▶ tensors ── features ──▶ features ── stepper ──▶ a `Stepper`

    A feature cache keeps the stem output. `encode` is `stem` and `encode_stem` in one. `encoder_outputs` can be run by
    another back end in PyTorch's place.
    """

    #: The settings that rebuild the model without any weights but its own.
    settings: Any
    vocab_size: int
    #: Name prefixes of the parameters that are pretrained, for a learning rate of their own.
    pretrained_prefixes: tuple[str, ...] = ()
    #: Name prefixes of the image encoder's parameters.
    encoder_prefixes: tuple[str, ...] = ()
    #: Names of the methods worth compiling: tensors in, tensors out, no branches on their values.
    compilable: tuple[str, ...] = ()
    #: Run every part equally often, whatever the batch, since all processes must run it at the same time (FSDP).
    lockstep: bool = False

    def encode(self, pixels: Tensor) -> Any:
        """Pixels (B, S, S, 3) uint8 to the images' features, as `forward` and `stepper` take them."""
        return self.encode_stem(self.stem(pixels))

    @abstractmethod
    def encoder_outputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """All that a decoder needs of pixels (B, S, S, 3) uint8, as tensors (B, …).

        Tensors in, tensors out, no branches on their values: another back end may run it in PyTorch's
        place (`captioning.backends`).
        """

    @abstractmethod
    def features(self, outputs: tuple[Tensor, ...]) -> Any:
        """The result of `encoder_outputs` in the form that `stepper` takes."""

    @abstractmethod
    def stem(self, pixels: Tensor) -> Tensor:
        """The output (B, …) float of the frozen part of the image encoder for pixels (B, S, S, 3) uint8.

        Without gradients and in evaluation mode, so that it can be cached. Where nothing is frozen,
        the pixels themselves.
        """

    @abstractmethod
    def encode_stem(self, stem: Tensor) -> Any:
        """The images' features from the output of `stem`, in whatever float type it was cached."""

    @abstractmethod
    def stem_identity(self) -> str | None:
        """SHA-256 of all that `stem` depends on (weights, structure), or None where nothing is frozen."""

    @abstractmethod
    def forward(self, features: Any, captions: Tensor, images: Tensor, context: Tensor | None = None) -> TeacherForced:
        """Score captions by teacher forcing.

        `captions` is (N, T) long: token ids without BOS, with EOS, padded with `PAD_TARGET`;
        `images` is (N,) long, the row of `features` that each caption describes.
        The targets are `captions` themselves: the shift by one is made here and nowhere else.
        `context` (N, T) replaces `captions` as the tokens read before each target (scheduled sampling).
        """

    @abstractmethod
    def forward_text(self, captions: Tensor) -> TeacherForced:
        """Score captions (N, T) without images, the decoder being a language model."""

    def attention(self, features: Any, captions: Tensor, images: Tensor) -> Tensor | None:  # noqa: ARG002
        """Where the model looks for each token: weights (N, T, rows, columns) float32 over the encoder's grid.

        `captions` (N, T) and `images` (N,) are as in `forward`. The weights of a token sum to 1; those of
        `PAD_TARGET` mean nothing. None for a model without attention over a grid.
        """
        return None

    def embed_images(self, stem: Tensor) -> Tensor:  # noqa: ARG002
        """The images' embeddings (B, D), which contrastive training compares with text. Raises `SettingsError`."""
        raise SettingsError(f"model.kind {self.settings.kind} has no image embedding to compare with text.")

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the same captioner under other training settings (of an earlier stage)."""
        self.load_state_dict(state)

    @abstractmethod
    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes to `settings` that train this share of the image encoder, and all of the decoder.

        Raises `SettingsError` where the model does not know which part that is.
        """

    @abstractmethod
    def grow_vocabulary(self, size: int) -> None:
        """Extend the vocabulary to `size` tokens. New ones start as the mean of the others.

        So they are unlikely at first, and captions stay the same until they are learned (Hewitt
        2021, "Initializing new word embeddings for pretrained language models").
        """

    @property
    def checkpoint_settings(self) -> Any:
        """The settings that a checkpoint holds: they rebuild the model of a `checkpoint_state`."""
        return self.settings

    def checkpoint_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state of this model as a checkpoint holds it, without what only training needs."""
        return state

    def enable_cuda_graphs(self) -> None:
        """Capture decoding steps as CUDA graphs from now on (`captioning.decoding.cuda_graphs`).

        Raises `SettingsError` for a model whose steps are few kernels anyway.
        """
        raise SettingsError(f"model.kind {self.settings.kind} has no steps to record: leave cuda_graphs out.")

    @abstractmethod
    def stepper(self, features: Any, prompt: list[int] | None = None) -> Stepper:
        """A `Stepper` over the images of `features`, for the decoding engine.

        `prompt` holds token ids that every caption continues; they are not part of the result.
        """

    @abstractmethod
    def max_positions(self) -> int | None:
        """The most tokens that prompt and caption can have together, or None for no bound."""

    @property
    def has_attention(self) -> bool:
        """Whether `attention` returns weights."""
        return False

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device
