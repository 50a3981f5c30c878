"""The models by name. A new model is one file in this folder, one of its settings, and a line in each table here.

A model is imported when it is built: whoever only reads settings does not wait for PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from captioning.data.preprocess import PreprocessSettings
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.cnn_lstm_settings import CnnLstmSettings

if TYPE_CHECKING:
    from captioning.models.base import CaptionModel, Vocabulary

#: The settings of any model; `kind` says of which.
ModelSettings = Annotated[CnnLstmSettings | ClipGpt2Settings, pydantic.Field(discriminator="kind")]

#: Module and class of each `kind`.
_MODELS = {
    "cnn_lstm": ("captioning.models.cnn_lstm", "CnnLstm"),
    "clip_gpt2": ("captioning.models.clip_gpt2", "ClipGpt2"),
}


def build_model(
    settings: CnnLstmSettings | ClipGpt2Settings,
    vocabulary: "Vocabulary",
    preprocess: PreprocessSettings,
    *,
    pretrained: bool = True,
) -> "CaptionModel":
    """The model that `settings` describe.

    With `pretrained` false nothing is fetched and every weight is random: for a checkpoint whose
    own weights are loaded next. The model's `settings` attribute holds what rebuilds it that way.
    """
    module, name = _MODELS[settings.kind]
    make: Any = getattr(importlib.import_module(module), name)
    model: CaptionModel = make(settings, vocabulary, preprocess, pretrained=pretrained)
    return model
