"""Compiles a model's networks with torch.compile, falling back to eager where that fails."""

import torch

from captioning.models.base import CaptionModel


def compile_model(model: CaptionModel) -> None:
    """Compile the model's `networks` in place, at their first use, without renaming its weights.

    Dimensions that change between batches become dynamic; image sizes stay static. What cannot be compiled
    runs eagerly, with a warning.
    """
    torch._dynamo.config.suppress_errors = True
    for name in model.compilable:
        owner, _, method = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, method, torch.compile(getattr(module, method)))
