"""The models by name. A new model is a file in this folder, one with its settings, and a line in each table here.

A model's module is imported when it is built, so that reading settings does not import PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Annotated, Any

import pydantic

from captioning.data.preprocess import PreprocessSettings
from captioning.models.clip_gpt2_settings import ClipGpt2Settings
from captioning.models.cnn_lstm_settings import CnnLstmSettings

if TYPE_CHECKING:
    from captioning.models.base import CaptionModel, Vocabulary

#: The settings of any model, told apart by `kind`.
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

    With `pretrained` false nothing is fetched and all weights are random: a checkpoint's own are loaded
    next. The model's `settings` attribute rebuilds it that way.
    """
    module, name = _MODELS[settings.kind]
    model_class: Any = getattr(importlib.import_module(module), name)
    model: CaptionModel = model_class(settings, vocabulary, preprocess, pretrained=pretrained)
    return model
