"""The models by name. A new model is one file in this folder and one line here."""

from typing import Annotated, Any

import pydantic

from captioning.data.preprocess import PreprocessSettings
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2, ClipGpt2Settings
from captioning.models.cnn_lstm import CnnLstm, CnnLstmSettings

#: The settings of any model; `kind` says of which.
ModelSettings = Annotated[CnnLstmSettings | ClipGpt2Settings, pydantic.Field(discriminator="kind")]

_MODELS: dict[str, Any] = {"cnn_lstm": CnnLstm, "clip_gpt2": ClipGpt2}


def build_model(
    settings: CnnLstmSettings | ClipGpt2Settings,
    vocabulary: Vocabulary,
    preprocess: PreprocessSettings,
    *,
    pretrained: bool = True,
) -> CaptionModel:
    """The model that `settings` describe.

    With `pretrained` false nothing is fetched and every weight is random: for a checkpoint whose
    own weights are loaded next. The model's `settings` attribute holds what rebuilds it that way.
    """
    model: CaptionModel = _MODELS[settings.kind](settings, vocabulary, preprocess, pretrained=pretrained)
    return model
