"""A model through torch.compile. Knows which of its methods training calls, and nothing of what is in them."""

import torch

from captioning.models.base import CaptionModel

#: What is run besides `forward`. Decoding is not: its shapes change with every token.
_METHODS = ("stem", "finish", "read_text", "embed_images")


def compile_model(model: CaptionModel) -> None:
    """Compile the model in place, at its first use and for batches of any size. The names of its weights stay."""
    model.compile(dynamic=True)
    for name in _METHODS:
        setattr(model, name, torch.compile(getattr(model, name), dynamic=True))
