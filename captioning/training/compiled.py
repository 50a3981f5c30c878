"""A model's networks through torch.compile. What they are the model says; that it goes on without is seen to here."""

import torch

from captioning.models.base import CaptionModel


def compile_model(model: CaptionModel) -> None:
    """Compile the model's `networks` in place, at their first use. The names of its weights stay.

    Sizes that change from batch to batch are found to do so, and compiled for any; those of an
    image are not. What the compiler cannot do runs as it is, with a warning.
    """
    torch._dynamo.config.suppress_errors = True
    for name in model.compilable:
        owner, _, method = name.rpartition(".")
        module = model.get_submodule(owner)
        setattr(module, method, torch.compile(getattr(module, method)))
