"""A model sharded over the workers (FSDP): each holds a shard of its weights, gradients and optimiser state.

Weights are gathered while they are needed: those of a unit (a block of GPT-2, a layer of CLIP, a stage of a
CNN) while it runs forward or backward, all others for a whole pass. All workers must run the units equally
often and in the same order, or they deadlock.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from captioning.errors import SettingsError
from captioning.models.base import CaptionModel
from captioning.models.encoders import GridEncoder
from captioning.models.prepared import discard_prepared
from captioning.training.workers import Workers

T = TypeVar("T")
#: A module becomes an FSDP unit if it has at least this share of the weights: each unit costs collective calls.
_MIN_UNIT_SHARE = 0.01
#: The attribute of a model that holds its `ShardedModel`.
_ATTRIBUTE = "_sharded"


class ShardedModel:
    """Shards `model` over the workers in place: its parameters become `DTensor`s on the workers' device."""

    def __init__(self, model: CaptionModel, workers: Workers) -> None:
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise SettingsError(
                f"fsdp: PyTorch {torch.__version__} cannot sum gradients without dividing them. Install a newer one "
                "(constraints.txt names the tested one), or leave fsdp out."
            )
        for parameter in model.parameters():
            # Convolutions may be in channels-last format, which FSDP cannot shard.
            parameter.data = parameter.data.contiguous()
        self._root = _Root(model)
        mesh = init_device_mesh(workers.device.type, (workers.world_size,))
        chains = [[unit for unit in chain if _is_large_enough(unit, model)] for chain in _chains(model)]
        for chain in chains:
            for unit in chain:
                fully_shard(unit, mesh=mesh)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=False)
        self._units = [_fsdp(unit) for chain in chains for unit in chain]
        for module in (_fsdp(self._root), *self._units):
            # Gradients are summed over the workers, not averaged. The setting is not recursive.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for chain in chains:
            previous: nn.Module = self._root
            for unit in chain:
                # Explicit, because FSDP derives the order from the last forward calls, which may be those of decoding.
                _fsdp(unit).set_modules_to_backward_prefetch([_fsdp(previous)])
                previous = unit if _is_trainable(unit) else self._root
        self._is_unsharded = False
        model.lockstep = True
        model.__dict__[_ATTRIBUTE] = self

    def run(self, forward: Callable[[], tuple[Tensor, T]]) -> tuple[Tensor, T]:
        """Call `forward`, which may use any method of the model. Backward sums the gradients over the workers."""
        result: tuple[Tensor, T] = self._root(forward)
        return result

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Inside, every worker has all weights as plain tensors, and may run the model as often as it likes."""
        if self._is_unsharded:
            yield
            return
        root = _fsdp(self._root)
        # During a pass the root's own weights are gathered already, and must stay so.
        within_pass = not any(isinstance(parameter, DTensor) for parameter in _root_parameters(self._root))
        if not within_pass:
            root.unshard()
        for unit in self._units:
            unit.unshard()
            unit.set_reshard_after_forward(False, recurse=False)
        self._is_unsharded = True
        try:
            yield
        finally:
            self._is_unsharded = False
            # The next gather reuses these tensors with the same version, so what was derived from them must go.
            discard_prepared(self._root)
            for unit in self._units:
                unit.set_reshard_after_forward(True, recurse=False)
                unit.reshard()
            if not within_pass:
                root.reshard()


@contextmanager
def unsharded(model: nn.Module) -> Iterator[None]:
    """Inside, each worker can run `model` by itself. All workers must enter; no-op for a model that is not sharded."""
    sharded: ShardedModel | None = getattr(model, _ATTRIBUTE, None)
    if sharded is None:
        yield
    else:
        with sharded.unsharded():
            yield


def gather_tensors(tensors: Mapping[str, Tensor], workers: Workers) -> Mapping[str, Tensor]:
    """The full `tensors`, on rank 0's CPU; the other workers, who must call it too, get none.

    If no tensor is sharded, all workers get `tensors` unchanged.
    """
    if not any(isinstance(value, DTensor) for value in tensors.values()):
        return tensors
    gathered = {}
    # Sorted, because tensors read from a file come in a different order in each process.
    for name, value in sorted(tensors.items()):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if workers.rank == 0:
            gathered[name] = full.detach().cpu()
    return gathered


def shard_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors`, each sharded like the tensor of its name in `like`."""
    return {name: _shard_like(value, like[name]) if name in like else value for name, value in tensors.items()}


def shard_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Shard the optimiser's state like its parameters."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = _shard_like(value, parameter)


def local_part(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor, as a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_sharded_gradients(parameters: Iterable[nn.Parameter], max_norm: float, workers: Workers) -> float:
    """`clip_grad_norm_` where some gradients are sharded and all others are equal in every worker. Returns the norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = {True: 0.0, False: 0.0}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] += float(local_part(gradient).float().square().sum())
    norm: float = (workers.sum(squares[True]) + squares[False]) ** 0.5
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        torch._foreach_mul_([local_part(gradient) for gradient in gradients], factor)
    return norm


class _Root(nn.Module):
    """A root module whose `forward` calls any function, so that FSDP gathers the weights outside the units for it.

    A pass calls methods of the model other than `forward`, which FSDP's hooks would miss.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def _chains(model: nn.Module) -> list[list[nn.Module]]:
    """Sequences of modules that run in order, each through `forward` only: pieces of CNNs, layers of transformers."""
    chains = []
    encoders = [module for module in model.modules() if isinstance(module, GridEncoder)]
    within = {id(inner) for encoder in encoders for inner in encoder.modules()}
    chains += [encoder.pieces for encoder in encoders]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in within:
            chains.append(list(module))
            within |= {id(inner) for inner in module.modules()}
    return chains


def _is_large_enough(unit: nn.Module, model: nn.Module) -> bool:
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (unit, model)]
    return sizes[0] >= max(_MIN_UNIT_SHARE * sizes[1], 1)


def _is_trainable(unit: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in unit.parameters())


def _root_parameters(root: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that belong to no FSDP unit."""
    yield from root.parameters(recurse=False)
    for child in root.children():
        if not isinstance(child, FSDPModule):
            yield from _root_parameters(child)


def _shard_like(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    # Every worker has the full value and takes its shard of it, without communication.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module
