"""Images in, captions out: the narrow waist of the package.

Callers do not depend on which model runs, and models do not depend on what they are used for. A captioner
is a model with its tokenizer, preprocessing and decoding settings, loaded together from a checkpoint.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from captioning.backends.choice import Choice, choose
from captioning.backends.names import EncoderBackend, Precision
from captioning.captioner_info import inspect_captioner, override_decoding
from captioning.data.images import to_rgb
from captioning.data.preprocess import Preprocess, PreprocessSettings
from captioning.data.tokenizers import Tokenizer, encode_prompt, load_tokenizer
from captioning.decoding.search import Hypothesis, decode
from captioning.decoding.settings import DecodingSettings
from captioning.errors import ImageError, SettingsError
from captioning.explain import attention, word_maps
from captioning.models.base import CaptionModel
from captioning.models.checkpoint import load_model
from captioning.models.checkpoint_config import read_config
from captioning.storage import StorageSettings

#: A PIL image, its pixels (H, W, 3) uint8 RGB, the path of its file, or the file's bytes.
Image = PIL.Image.Image | np.ndarray[Any, Any] | str | Path | bytes


@dataclass(frozen=True)
class Caption:
    """A caption with its alternatives, best first and itself included.

    `score` is the mean log-probability of its tokens; it and `num_tokens` count the end token.
    """

    text: str
    score: float
    num_tokens: int
    alternatives: tuple[tuple[str, float], ...]
    ended: bool = True
    """Whether it reached its end token; if not, it was cut at `max_new_tokens`."""
    unknown: bool = False
    """Whether it contains a token that stands for no word."""


@dataclass(frozen=True)
class Explanation:
    """A caption, its words, and where the model looked for each of them."""

    caption: Caption
    words: tuple[str, ...]
    """The caption's W words, including those of a prompt."""
    weights: NDArray[np.float32] | None
    """(W, rows, columns): each word's attention, with a sum of 1, over a grid on the part of the image that the model
    sees (its centred square, or all of it squashed: `preprocess.mode`). None for a model without such attention."""


class Captioner:
    """A model with its tokenizer, preprocessing and decoding settings."""

    def __init__(
        self,
        model: CaptionModel,
        tokenizer: Tokenizer,
        preprocess: PreprocessSettings,
        decoding: DecodingSettings,
        *,
        name: str = "captioner",
        precision: Precision = "fp32",
        encoder: Choice | None = None,
    ) -> None:
        self.model = model.eval()
        #: The back end that runs the model's image network.
        self.encoder = encoder or Choice("eager", model.encoder_outputs)
        self.tokenizer = tokenizer
        self.preprocess = Preprocess(preprocess)
        self.decoding = decoding
        self.name = name
        self.precision = precision
        self._check(decoding)

    def __getstate__(self) -> dict[str, Any]:
        """All but the image network's back end, which is made for this processor and cannot be pickled."""
        return {**self.__dict__, "encoder": self.encoder.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.encoder = _choose(self.model, self.preprocess.settings, self.precision, state["encoder"])

    def caption(self, images: Sequence[Image], *, batch_size: int = 32, **overrides: Any) -> list[Caption]:
        """Caption PIL images, uint8 RGB arrays (H, W, 3), paths or bytes of files; `overrides` are decoding settings.

        Images are read and run through the model `batch_size` at a time. Raises `ImageError` for an image that
        cannot be decoded, `OSError` for a file that cannot be read, `SettingsError` for a wrong override,
        `LogitsError` where the model's logits are not finite, and `TypeError` or `ValueError` for an argument that
        is no list of images.
        """
        if isinstance(images, PIL.Image.Image | str | Path | bytes) or getattr(images, "ndim", 4) < 4:
            raise TypeError("caption() takes a list of images: caption([image]).")
        settings = self._settings(overrides)
        captions: list[Caption] = []
        for batch in _batches(len(images), batch_size):
            pixels = [self._numbered_pixels(images, number) for number in batch]
            captions += self.caption_features(self.encode(np.stack(pixels)), settings)
        return captions

    def caption_pixels(self, pixels: np.ndarray[Any, Any], *, batch_size: int = 32, **overrides: Any) -> list[Caption]:
        """Caption preprocessed pixels (B, S, S, 3) uint8, `batch_size` at a time."""
        settings = self._settings(overrides)
        captions: list[Caption] = []
        for batch in _batches(len(pixels), batch_size):
            captions += self.caption_features(self.encode(pixels[batch.start : batch.stop]), settings)
        return captions

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray[Any, Any]) -> Any:
        """The model's features of preprocessed pixels (B, S, S, 3) uint8, in one batch."""
        size = self.preprocess.settings.size
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != (size, size, 3):
            raise TypeError(
                f"Preprocessed pixels must be uint8 (B, {size}, {size}, 3), not {pixels.dtype} {pixels.shape}."
            )
        batch = torch.from_numpy(np.ascontiguousarray(pixels)).to(self.model.device)
        with _autocast(self.model.device, self.precision), _without_tf32():
            return self.model.features(self.encoder.run(batch))

    @torch.inference_mode()
    def caption_features(self, features: Any, settings: DecodingSettings) -> list[Caption]:
        """Caption the features that `encode` returned, in one batch. They can be decoded several times."""
        results, prompt = self._decode(features, settings)
        return [self._caption(hypotheses, prompt) for hypotheses in results]

    def explain(self, image: Image, **overrides: Any) -> Explanation:
        """Caption one image, and tell where the model looked for each word.

        `overrides` are decoding settings. Raises `ImageError` and `SettingsError` as `caption` does.
        """
        return self.explain_pixels(self._pixels(image)[None], **overrides)[0]

    @torch.inference_mode()
    def explain_pixels(self, pixels: np.ndarray[Any, Any], **overrides: Any) -> list[Explanation]:
        """As `explain`, for preprocessed pixels (B, S, S, 3) uint8, in one batch. The captions are those of `caption`.

        The weights come from a second pass over the finished caption (teacher forcing), in float32.
        """
        settings = self._settings(overrides)
        if not len(pixels):
            return []
        features = self.encode(pixels)
        results, prompt = self._decode(features, settings)
        captions = [[*prompt, *hypotheses[0].tokens] for hypotheses in results]
        with _autocast(self.model.device, "fp32"):
            weights = attention(self.model, features, captions)
        maps = [word_maps(self.tokenizer, *each) for each in zip(captions, weights, strict=True)]
        return [
            Explanation(self._caption(hypotheses, prompt), words, map_)
            for hypotheses, (words, map_) in zip(results, maps, strict=True)
        ]

    def _decode(self, features: Any, settings: DecodingSettings) -> tuple[list[list[Hypothesis]], list[int]]:
        """The hypotheses of each image, best first, and the tokens of the prompt that they continue."""
        prompt = encode_prompt(self.tokenizer, settings.prompt)
        with _autocast(self.model.device, self.precision):
            stepper = self.model.stepper(features, prompt)
            results = decode(stepper, settings, eos_id=self.tokenizer.eos_id, banned=self.tokenizer.banned_ids)
        return results, prompt

    def _settings(self, overrides: Mapping[str, Any]) -> DecodingSettings:
        """The captioner's decoding settings with `overrides`. Raises `SettingsError`."""
        settings = override_decoding(self.decoding, overrides)
        self._check(settings)
        return settings

    def _numbered_pixels(self, images: Sequence[Image], number: int) -> np.ndarray[Any, Any]:
        """`_pixels` of one of several images, whose number an error names."""
        image = images[number]
        try:
            return self._pixels(image)
        except ImageError as error:
            which = f"{number + 1} of {len(images)}" + (f" ({image})" if isinstance(image, str | Path) else "")
            raise ImageError(error.error_class, f"Image {which}: {error.message}") from error

    def _pixels(self, image: Image) -> np.ndarray[Any, Any]:
        if isinstance(image, str) and "://" in image:
            raise TypeError(f"{image} is an address: download it, and pass its bytes or a file's path.")
        if isinstance(image, str | Path):
            return self.preprocess.from_bytes(Path(image).read_bytes()).pixels
        if isinstance(image, bytes):
            return self.preprocess.from_bytes(image).pixels
        if isinstance(image, PIL.Image.Image):
            image = to_rgb(image)
        if not isinstance(image, np.ndarray):
            raise TypeError(f"An image is a PIL image, a uint8 array, a path or bytes, not {type(image).__name__}.")
        return self.preprocess(image)

    def _caption(self, hypotheses: list[Hypothesis], prompt: list[int]) -> Caption:
        texts = [(self.tokenizer.decode([*prompt, *h.tokens]), h.score) for h in hypotheses]
        best = hypotheses[0]
        return Caption(
            texts[0][0],
            best.score,
            best.num_tokens,
            tuple(texts),
            # num_tokens counts the end token, which is not among the tokens.
            ended=len(best.tokens) < best.num_tokens,
            unknown=not set(self.tokenizer.banned_ids).isdisjoint(best.tokens),
        )

    def _check(self, settings: DecodingSettings) -> None:
        longest = self.model.max_positions()
        prompt = len(encode_prompt(self.tokenizer, settings.prompt))
        if longest is not None and settings.max_new_tokens + prompt > longest:
            raise SettingsError(
                f"decoding.max_new_tokens is {settings.max_new_tokens} and the prompt has {prompt} tokens, "
                f"but this captioner has room for {longest} in all."
            )


def load_captioner(
    ref: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    encoder: EncoderBackend = "auto",
    cuda_graphs: bool = False,
    decoding: Mapping[str, Any] | None = None,
    storage: StorageSettings = StorageSettings(),
) -> Captioner:
    """Load the captioner that `ref` names (the bundled one by default).

    `ref` is a bundled name, a folder, a URI or a hub repository (`org/name@revision`); `decoding`
    overrides the checkpoint's default decoding; `device` `auto` takes a GPU when there is one; `encoder`
    is the image network's back end (`captioning.backends`): `auto` measures which is fastest here;
    `cuda_graphs` captures GPT-2's steps on a GPU as CUDA graphs. Raises `CheckpointError` or `SettingsError`.
    """
    info = inspect_captioner(ref, decoding=decoding, precision=precision, storage=storage)
    tokenizer = load_tokenizer(info.folder)
    model = load_model(info.folder, read_config(info.folder), tokenizer)
    model.to(_device(device)).eval().requires_grad_(False)
    if cuda_graphs:
        if model.device.type != "cuda":
            raise SettingsError(f"cuda_graphs is for GPUs, but this captioner is on {model.device}: leave it out.")
        model.enable_cuda_graphs()
    choice = _choose(model, info.preprocess, precision, encoder)
    return Captioner(
        model, tokenizer, info.preprocess, info.decoding, name=info.name, precision=precision, encoder=choice
    )


def _batches(count: int, size: int) -> list[range]:
    """The range of `count` in batches of `size`."""
    if size < 1:
        raise SettingsError(f"batch_size is {size}: it must be at least 1.")
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _choose(
    model: CaptionModel, preprocess: PreprocessSettings, precision: Precision, backend: EncoderBackend
) -> Choice:
    with _autocast(model.device, "fp32"):
        return choose(
            model.encoder_outputs, backend=backend, device=model.device, precision=precision, image_size=preprocess.size
        )


def _autocast(device: torch.device, precision: Precision) -> AbstractContextManager[Any]:
    """Autocast for `precision`, in place of the caller's."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Run convolutions on GPUs in full float32; with PyTorch's default, TF32, scores are off by up to 2e-3."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise SettingsError(f"Unknown device {name!r}: use auto, cpu, cuda or cuda:N.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SettingsError(f"Device {name!r} was requested, but this machine has no GPU that PyTorch can use.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        shown = f"{count} GPU{'' if count == 1 else 's'}"
        raise SettingsError(f"Device {name!r} was requested, but PyTorch finds only {shown} on this machine.")
    return device
