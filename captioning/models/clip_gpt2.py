"""CLIP-GPT2: CLIP's view of the image, mapped to a prefix that GPT-2 continues as the caption.

ClipCap (Mokady et al. 2021). Knows pixels and token ids; `towers` makes the two networks and
`mapper` what joins them. Shapes: B images, N captions, R hypotheses, T tokens, P prefix, E width
of GPT-2, V vocabulary.

CLIP was trained on pixels less `CLIP_MEAN`, over `CLIP_STD`, resized bicubically and cropped: the
preprocessing to use with published weights.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from captioning.config import settings
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced, Vocabulary
from captioning.models.mapper import MapperSettings, make_mapper
from captioning.models.pixels import Normalise
from captioning.models.towers import (
    ClipTower,
    Gpt2Tower,
    clip_sizes,
    gpt2_sizes,
    load_clip,
    load_gpt2,
    make_clip,
    make_gpt2,
)

#: The preprocessing of OpenAI's CLIP, in units of 0 to 255 (Radford et al. 2021, their released code).
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


@settings
class ClipGpt2Settings:
    """The parts of a CLIP-GPT2, and which of them learn."""

    kind: Literal["clip_gpt2"] = "clip_gpt2"
    clip: str | ClipTower = "openai/clip-vit-base-patch32"
    """A hub id, `ORG/NAME@REVISION`, a folder in the hub's layout, or sizes for random weights."""

    gpt2: str | Gpt2Tower = "openai-community/gpt2"
    """As `clip`. The tokenizer must be the one that these weights were trained with."""

    mapper: MapperSettings = MapperSettings()
    train: Literal["mapper", "decoder", "all"] = "decoder"
    """What learns: the mapper alone, the mapper and GPT-2 (`decoder`), or CLIP too."""

    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Dropout in the mapper and throughout GPT-2."""


def resolved(settings: ClipGpt2Settings, vocabulary: Vocabulary) -> ClipGpt2Settings:
    """The same model with both towers spelled out as sizes: what rebuilds it without the references.

    Raises `CheckpointError` when a reference cannot be read.
    """
    clip = clip_sizes(settings.clip) if isinstance(settings.clip, str) else settings.clip
    gpt2 = gpt2_sizes(settings.gpt2) if isinstance(settings.gpt2, str) else settings.gpt2
    if gpt2.vocab_size is None:
        gpt2 = dataclasses.replace(gpt2, vocab_size=vocabulary.size)
    return dataclasses.replace(settings, clip=clip, gpt2=gpt2)


class ClipGpt2(CaptionModel):
    """CLIP's vision transformer, a mapper, and GPT-2.

    Features are CLIP's image embeddings (B, D), or its states (B, L, D) for a mapper that reads
    patches. The last embedding of the prefix (or of the prompt) predicts the first token, so BOS
    is never an input. What does not learn has no gradients and stays in evaluation mode.
    """

    def __init__(
        self, settings: ClipGpt2Settings, vocabulary: Vocabulary, preprocess: PreprocessSettings, *, pretrained: bool
    ) -> None:
        super().__init__()
        if not pretrained and (isinstance(settings.clip, str) or isinstance(settings.gpt2, str)):
            raise CheckpointError("model.clip and model.gpt2 must be given as sizes, since no weights are fetched.")
        self.settings = resolved(settings, vocabulary)
        clip, gpt2 = self.settings.clip, self.settings.gpt2
        assert isinstance(clip, ClipTower)
        assert isinstance(gpt2, Gpt2Tower)
        self.vocab_size = vocabulary.size
        self._filler_id = vocabulary.eos_id
        self._n_positions = gpt2.n_positions
        self._prefix_length = settings.mapper.prefix_length
        self._reads_patches = settings.mapper.source == "patches"
        _check_fit(clip, gpt2, self._prefix_length, vocabulary, preprocess)

        self.normalise = Normalise(preprocess.mean, preprocess.std)
        self.clip = make_clip(clip)
        feature_size = clip.hidden_size if self._reads_patches else clip.projection_dim
        self.mapper = _make_mapper(settings, feature_size, gpt2.n_embd)
        self.gpt2 = make_gpt2(gpt2, dropout=settings.dropout)
        if isinstance(settings.clip, str):
            load_clip(self.clip, settings.clip)
            _check_normalisation(settings.clip, preprocess)
        if isinstance(settings.gpt2, str):
            load_gpt2(self.gpt2, settings.gpt2)
        # What holds weights already when training begins: from a reference, or soon from a checkpoint.
        towers = {"clip.": settings.clip, "gpt2.": settings.gpt2}
        self.pretrained_parts = tuple(
            name for name, tower in towers.items() if isinstance(tower, str) or not pretrained
        )
        self._freeze()
        if gpt2.tie_word_embeddings:
            # One matrix under two names: it is saved once, and tied again when loaded.
            hooked: Any = self
            hooked.register_state_dict_post_hook(_drop_tied)
            hooked.register_load_state_dict_pre_hook(_restore_tied)
            hooked.register_load_state_dict_post_hook(_tie)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8 to CLIP's image embeddings (B, D), or its states (B, L, D)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.settings.train == "all"):
            seen = self.clip(pixel_values=self.normalise(pixels))
            features: Tensor = seen.last_hidden_state if self._reads_patches else seen.image_embeds
        return features

    def forward(
        self, features: Tensor, captions: Tensor, images: Tensor, prompt: Sequence[int] | None = None
    ) -> TeacherForced:
        """Score `captions` (N, T) of the `images` (N,) by teacher forcing.

        With a `prompt` every caption is learned as its continuation: the prompt is read, and no
        loss is taken on it. Logits are (K, V) for the K targets.
        """
        asked = captions != PAD_TARGET
        prefix = self.prefix(features, prompt or [])
        # The one place where inputs and targets part by one token: the prefix ends one before.
        words = self._embed(captions[:, :-1].masked_fill(~asked[:, :-1], self._filler_id))
        before = prefix[images]
        # Pads come after the caption, and attention looks only back: no mask is needed.
        inputs = torch.cat([before, words.to(before.dtype)], dim=1)
        self._check_length(inputs.shape[1])
        states = self.gpt2.transformer(inputs_embeds=inputs, use_cache=False).last_hidden_state
        return TeacherForced(self._logits(states[:, before.shape[1] - 1 :][asked]))

    def stepper(self, features: Tensor, prompt: list[int] | None = None) -> "Gpt2Stepper":
        """Decode the images of `features`, each caption going on from `prompt`."""
        return Gpt2Stepper(self, self.prefix(features, prompt or []))

    def max_positions(self) -> int | None:
        """Positions that the prefix leaves for prompt and caption."""
        return self._n_positions - self._prefix_length

    def prefix(self, features: Tensor, prompt: Sequence[int] = ()) -> Tensor:
        """What GPT-2 reads before the caption: the mapped features and the prompt, (B, P + prompt, E)."""
        mapped: Tensor = self.mapper(features)
        if not prompt:
            return mapped
        words = self._embed(torch.tensor(list(prompt), device=mapped.device)).to(mapped.dtype)
        return torch.cat([mapped, words.expand(len(mapped), -1, -1)], dim=1)

    def train(self, mode: bool = True) -> "ClipGpt2":
        """Training mode for what learns; what does not stays in evaluation mode."""
        super().train(mode)
        if self.settings.train != "all":
            self.clip.eval()
        if self.settings.train == "mapper":
            self.gpt2.eval()
        return self

    def _embed(self, tokens: Tensor) -> Tensor:
        words: Tensor = self.gpt2.transformer.wte(tokens)
        return words

    def _logits(self, states: Tensor) -> Tensor:
        # Some published vocabularies are padded beyond the tokenizer's.
        logits: Tensor = self.gpt2.lm_head(states)[..., : self.vocab_size].float()
        return logits

    def _check_length(self, positions: int) -> None:
        if positions > self._n_positions:
            raise SettingsError(
                f"GPT-2 has {self._n_positions} positions, of which the prefix takes {self._prefix_length}: prompt "
                f"and caption may have {self._n_positions - self._prefix_length} tokens. Lower "
                "decoding.max_new_tokens, or cut the captions that are trained on."
            )

    def _freeze(self) -> None:
        self.clip.requires_grad_(self.settings.train == "all")
        self.gpt2.requires_grad_(self.settings.train != "mapper")
        if self._reads_patches:
            # The projection is not on the way from patches to captions, so no gradient would reach it.
            self.clip.vision_model.post_layernorm.requires_grad_(False)
            self.clip.visual_projection.requires_grad_(False)
        self.train(self.training)


class Gpt2Stepper:
    """Drives GPT-2 one token at a time. A hypothesis's state is its keys and values.

    The prefix is read once an image; hypotheses take their copies when beams part.
    """

    def __init__(self, model: ClipGpt2, prefix: Tensor) -> None:
        self.vocab_size = model.vocab_size
        self._model = model
        self._prefix = prefix
        self._cache: Any = None
        self._length = 0

    def start(self) -> Tensor:
        """Logits (B, V) of the first token."""
        from transformers import DynamicCache

        self._cache = DynamicCache()
        self._length = 0
        return self._read(self._prefix)

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` (R,) to the hypotheses `rows` (R,); logits (R, V)."""
        assert self._cache is not None, "start() comes first"
        self._cache.reorder_cache(torch.as_tensor(rows, device=self._prefix.device))
        tokens = torch.as_tensor(tokens, device=self._prefix.device)
        return self._read(self._model._embed(tokens)[:, None])

    def _read(self, inputs: Tensor) -> Tensor:
        self._length += inputs.shape[1]
        self._model._check_length(self._length)
        out = self._model.gpt2.transformer(inputs_embeds=inputs, past_key_values=self._cache, use_cache=True)
        return self._model._logits(out.last_hidden_state[:, -1])


def _make_mapper(settings: ClipGpt2Settings, feature_size: int, width: int) -> torch.nn.Module:
    try:
        return make_mapper(settings.mapper, feature_size=feature_size, width=width, dropout=settings.dropout)
    except ValueError as error:
        raise SettingsError(f"model: {error}.") from error


def _check_fit(
    clip: ClipTower, gpt2: Gpt2Tower, prefix_length: int, vocabulary: Vocabulary, preprocess: PreprocessSettings
) -> None:
    if preprocess.size != clip.image_size:
        raise SettingsError(
            f"preprocess.size is {preprocess.size}, and this CLIP sees {clip.image_size} pixels a side: "
            f"set preprocess.size to {clip.image_size}."
        )
    assert gpt2.vocab_size is not None
    if gpt2.vocab_size < vocabulary.size:
        raise SettingsError(
            f"The tokenizer has {vocabulary.size} tokens and this GPT-2 {gpt2.vocab_size}: use the tokenizer that "
            "belongs to the GPT-2, or leave model.gpt2.vocab_size out."
        )
    if gpt2.n_positions <= prefix_length:
        raise SettingsError(
            f"model.mapper.prefix_length {prefix_length} leaves no room for a caption in the {gpt2.n_positions} "
            "positions of model.gpt2."
        )


def _check_normalisation(reference: str, preprocess: PreprocessSettings) -> None:
    pairs = zip((*preprocess.mean, *preprocess.std), (*CLIP_MEAN, *CLIP_STD), strict=True)
    if any(abs(given - own) > 1 for given, own in pairs):
        warnings.warn(
            f"The weights of {reference} expect CLIP's own normalisation, and others are set. For the best captions "
            f"set preprocess.mean to {list(CLIP_MEAN)} and preprocess.std to {list(CLIP_STD)}.",
            stacklevel=3,
        )


def _drop_tied(_module: Any, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    state.pop(f"{prefix}gpt2.lm_head.weight", None)


def _restore_tied(_module: Any, state: dict[str, Any], prefix: str, *_rest: Any) -> None:
    embedding = f"{prefix}gpt2.transformer.wte.weight"
    if embedding in state:
        state[f"{prefix}gpt2.lm_head.weight"] = state[embedding]


def _tie(module: Any, _keys: Any) -> None:
    module.gpt2.lm_head.weight = module.gpt2.transformer.wte.weight
