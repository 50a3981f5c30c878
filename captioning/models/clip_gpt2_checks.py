"""Checks of a CLIP-GPT2's settings before it is built: the sizes of its parts, and whether they match.

CLIP was trained on pixels normalised as (x − `CLIP_MEAN`) / `CLIP_STD`, resized bicubically and cropped:
the preprocessing to use with published weights.
"""

import dataclasses
import warnings

from captioning.data.preprocess import PreprocessSettings
from captioning.errors import SettingsError
from captioning.models.base import Vocabulary
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.tower_settings import ClipTower, CnnTower, Gpt2Tower
from captioning.models.towers import clip_sizes, gpt2_sizes

#: The preprocessing of OpenAI's CLIP, in units of 0 to 255 (Radford et al. 2021, their released code).
CLIP_MEAN = (122.7709383, 116.7460125, 104.09373615)
CLIP_STD = (68.5005327, 66.6321579, 70.32316305)


def resolved(settings: ClipGpt2Settings, vocabulary: Vocabulary) -> ClipGpt2Settings:
    """The same settings with both towers given by sizes, so that the model is rebuilt without the references.

    Raises `CheckpointError` when a reference cannot be read.
    """
    clip = clip_sizes(settings.clip) if isinstance(settings.clip, str) else settings.clip
    gpt2 = gpt2_sizes(settings.gpt2) if isinstance(settings.gpt2, str) else settings.gpt2
    if gpt2.vocab_size is None:
        gpt2 = dataclasses.replace(gpt2, vocab_size=vocabulary.size)
    mapper = dataclasses.replace(settings.mapper, weights=None)
    return dataclasses.replace(settings, clip=clip, gpt2=gpt2, mapper=mapper)


def check_fit(
    clip: ClipTower | CnnTower,
    gpt2: Gpt2Tower,
    prefix_length: int,
    vocabulary: Vocabulary,
    preprocess: PreprocessSettings,
) -> None:
    """Raise `SettingsError` where the parts of a CLIP-GPT2 do not match."""
    if isinstance(clip, ClipTower) and preprocess.size != clip.image_size:
        raise SettingsError(
            f"preprocess.size is {preprocess.size}, but this CLIP takes images of {clip.image_size} pixels a side: "
            f"set preprocess.size to {clip.image_size}."
        )
    assert gpt2.vocab_size is not None
    if gpt2.vocab_size < vocabulary.size:
        raise SettingsError(
            f"The tokenizer has {vocabulary.size} tokens, but this GPT-2 has {gpt2.vocab_size}: use the tokenizer that "
            "belongs to the GPT-2, or leave model.gpt2.vocab_size out."
        )
    if gpt2.n_positions <= prefix_length:
        raise SettingsError(
            f"model.mapper.prefix_length {prefix_length} leaves no room for a caption in the {gpt2.n_positions} "
            "positions of model.gpt2."
        )


def check_normalisation(reference: str, preprocess: PreprocessSettings) -> None:
    """Warn where published weights of CLIP would get pixels normalised differently from their training."""
    pairs = zip((*preprocess.mean, *preprocess.std), (*CLIP_MEAN, *CLIP_STD), strict=True)
    if any(abs(given - own) > 1 for given, own in pairs):
        warnings.warn(
            f"The weights of {reference} expect CLIP's own normalisation, but another one is set. For the best "
            f"captions set preprocess.mean to {list(CLIP_MEAN)} and preprocess.std to {list(CLIP_STD)}.",
            stacklevel=3,
        )
