"""A model spread over the workers (FSDP): each keeps a share of its weights, gradients and optimiser.

The weights come together while they are needed: those of a part (a block of GPT-2, a layer of CLIP, a
stage of a CNN) while it runs, forward and backward; those between the parts for a pass. All workers
must run the parts equally often and in the same order, or they wait for one another for ever.
Knows modules and tensors, and nothing of objectives or steps.
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
#: A part comes together by itself if it has at least this share of the weights: each costs calls over the network.
_WORTH_IT = 0.01
#: Where a model keeps its `Spread`.
_KEPT_AS = "_spread"


class Spread:
    """Spreads `model` over the workers, in place: its parameters become `DTensor`s, moved to the workers' device."""

    def __init__(self, model: CaptionModel, workers: Workers) -> None:
        if not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise SettingsError(
                f"fsdp: PyTorch {torch.__version__} cannot sum gradients without dividing them. Install a newer one "
                "(constraints.txt names the tested one), or leave fsdp out."
            )
        for parameter in model.parameters():
            # Convolutions keep their channels last; shares must lie in plain order.
            parameter.data = parameter.data.contiguous()
        self._root = _Root(model)
        mesh = init_device_mesh(workers.device.type, (workers.world,))
        chains = [[part for part in chain if _is_worth_it(part, model)] for chain in _chains(model)]
        for chain in chains:
            for part in chain:
                fully_shard(part, mesh=mesh)
        fully_shard(self._root, mesh=mesh, reshard_after_forward=False)
        self._parts = [_fsdp(part) for chain in chains for part in chain]
        for module in (_fsdp(self._root), *self._parts):
            # A step's gradient is the sum of what the workers found, not their mean; each module goes by its own word.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
        for chain in chains:
            before: nn.Module = self._root
            for part in chain:
                # Said, and not left to FSDP: it goes by the order in which parts ran, in captions written too.
                _fsdp(part).set_modules_to_backward_prefetch([_fsdp(before)])
                before = part if _learns(part) else self._root
        self._whole = False
        model.lockstep = True
        model.__dict__[_KEPT_AS] = self

    def run(self, work: Callable[[], tuple[Tensor, T]]) -> tuple[Tensor, T]:
        """Run a pass through the model, `work`, and give what it gives; backward, gradients are summed over workers."""
        result: tuple[Tensor, T] = self._root(work)
        return result

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every worker has all the weights as plain tensors, and may run the model as often as it likes."""
        if self._whole:
            yield
            return
        root = _fsdp(self._root)
        # In the middle of a pass those between the parts are here already, and stay.
        within_pass = not any(isinstance(parameter, DTensor) for parameter in _between(self._root))
        if not within_pass:
            root.unshard()
        for part in self._parts:
            part.unshard()
            part.set_reshard_after_forward(False, recurse=False)
        self._whole = True
        try:
            yield
        finally:
            self._whole = False
            # The weights come together in the same tensors next time, at the same version and maybe the same place.
            discard_prepared(self._root)
            for part in self._parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()
            if not within_pass:
                root.reshard()


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Inside, `model` can be run by one worker alone. All workers must come here; for a model in one piece, nothing."""
    spread: Spread | None = getattr(model, _KEPT_AS, None)
    if spread is None:
        yield
    else:
        with spread.whole():
            yield


def gather_tensors(tensors: Mapping[str, Tensor], workers: Workers) -> Mapping[str, Tensor]:
    """`tensors` with those that are spread in one piece, in rank 0's memory; the other workers, who must call it too,
    get nothing. If none is spread, as they are."""
    if not any(isinstance(value, DTensor) for value in tensors.values()):
        return tensors
    found = {}
    # By name: tensors that came from a file are in another order in each process.
    for name, value in sorted(tensors.items()):
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if workers.rank == 0:
            found[name] = full.detach().cpu()
    return found


def spread_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with each spread as that of its name in `like` is, or left in one piece as that is."""
    return {name: _spread_as(value, like[name]) if name in like else value for name, value in tensors.items()}


def spread_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Spread what an optimiser remembers of its parameters as they are spread."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if value.shape == parameter.shape:
                state[name] = _spread_as(value, parameter)


def own_part(tensor: Tensor) -> Tensor:
    """What this worker has of a tensor; changed, it changes the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def clip_spread_gradients(parameters: Iterable[nn.Parameter], max_norm: float, workers: Workers) -> float:
    """As `clip_grad_norm_`, where some gradients are spread and all others the same in every worker; their norm."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    squares = {True: 0.0, False: 0.0}
    for gradient in gradients:
        squares[isinstance(gradient, DTensor)] += float(own_part(gradient).float().square().sum())
    norm: float = (workers.sum(squares[True]) + squares[False]) ** 0.5
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        torch._foreach_mul_([own_part(gradient) for gradient in gradients], factor)
    return norm


class _Root(nn.Module):
    """Has FSDP hold together, for a whole pass, what lies between the parts: a pass calls methods of the model other
    than `forward`, and uses weights that are no part's."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def _chains(model: nn.Module) -> list[list[nn.Module]]:
    """Modules that run one after the other, each only by being called: pieces of CNNs, layers of transformers."""
    chains = []
    encoders = [module for module in model.modules() if isinstance(module, GridEncoder)]
    within = {id(inner) for encoder in encoders for inner in encoder.modules()}
    chains += [encoder.pieces for encoder in encoders]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and id(module) not in within:
            chains.append(list(module))
            within |= {id(inner) for inner in module.modules()}
    return chains


def _is_worth_it(part: nn.Module, model: nn.Module) -> bool:
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for module in (part, model)]
    return sizes[0] >= max(_WORTH_IT * sizes[1], 1)


def _learns(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())


def _between(root: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters that are no part's."""
    yield from root.parameters(recurse=False)
    for child in root.children():
        if not isinstance(child, FSDPModule):
            yield from _between(child)


def _spread_as(value: Tensor, like: Tensor) -> Tensor:
    if not isinstance(like, DTensor) or isinstance(value, DTensor):
        return value
    # Every worker has the same value: each takes its share, and nothing is sent.
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _fsdp(module: nn.Module) -> FSDPModule:
    assert isinstance(module, FSDPModule)
    return module
