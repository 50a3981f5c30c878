"""Initial weights of a mapper, loaded from a trained captioner."""

from torch import nn

from captioning.errors import CheckpointError
from captioning.models.hub import read_tensors
from captioning.refs import resolve

_KEY = "model.mapper.weights"


def load_mapper(mapper: nn.Module, reference: str) -> None:
    """Fill `mapper` with the weights of the mapper in the checkpoint at `reference`.

    Raises `CheckpointError` when there is none, or its sizes differ.
    """
    own = mapper.state_dict()
    try:
        folder = resolve(reference)[1]
        tensors = read_tensors(folder, set(own), lambda name: name.removeprefix("mapper."))
    except CheckpointError as error:
        raise CheckpointError(f"{_KEY}: {error}") from error
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(
                f"{_KEY}: {name} has shape {tuple(tensor.shape)} in {reference}, but model.mapper and its towers "
                f"need {tuple(own[name].shape)}. Use the sizes of {reference}, or set weights to null."
            )
    mapper.load_state_dict(tensors)
