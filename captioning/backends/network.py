"""A network traced into an FX graph: its operations (aten's) for a fixed number of images, and its weights.

Back ends rewrite the graph to run several operations in one kernel.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary

#: Pixels (B, S, S, 3) uint8 to tensors (B, …).
Network = Callable[[Tensor], tuple[Tensor, ...]]

aten = torch.ops.aten


@dataclass(frozen=True)
class TensorMeta:
    """Shape and type of an operation's result (its `meta["val"]`)."""

    shape: torch.Size
    dtype: torch.dtype


def trace(network: Network, pixels: Tensor, dtype: torch.dtype = torch.float32) -> fx.GraphModule:
    """The operations of `network` for exactly as many images as `pixels` (B, S, S, 3) uint8 has.

    With bfloat16 they are those of autocast. Weights are attributes, and operations on weights alone are
    folded into them.
    """
    # Weights from autocast's cache would be taken for constants, without their exact values.
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16, cache_enabled=False)
    # In inference mode operations are not decomposed into simple ones.
    with torch.inference_mode(False), torch.no_grad(), cast:
        tracer = _Tracer(pixels)
        with tracer:
            results = network(pixels)
    module = tracer.module(results)
    _make_out_of_place(module)
    _fold_constants(module)
    module.graph.eliminate_dead_code()
    return module


def constant(module: fx.GraphModule, node: Any) -> Tensor | None:
    """The weight that an argument of an operation refers to, before rounding; None where it is not a weight."""
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return None
    exact = node.meta.get("exact")
    value: Tensor = getattr(module, str(node.target)) if exact is None else exact
    return value.detach()


def dtype_of(module: fx.GraphModule, node: fx.Node) -> torch.dtype:
    """The type that the weight `node` has in the computation."""
    dtype: torch.dtype = getattr(module, str(node.target)).dtype
    return dtype


def single_user(node: fx.Node) -> fx.Node | None:
    """The operation that reads a result, if there is exactly one."""
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def finish(module: fx.GraphModule) -> fx.GraphModule:
    """Remove unused operations and weights, and recompile the module."""
    module.graph.eliminate_dead_code()
    module.graph.lint()
    module.recompile()
    module.delete_all_unused_submodules()
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in list(module._buffers):
        if name not in read:
            delattr(module, name)
    return module


class _Tracer(TorchDispatchMode):
    """Records each operation as it runs. (`make_fx` does so too, and takes a second longer.)"""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights: dict[str, Any] = {}
        self._graph = fx.Graph()
        # Keyed weakly, so that results are freed while the network runs.
        self._nodes: Any = WeakIdKeyDictionary({pixels: self._graph.placeholder("images")})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing compiles under this mode, and telling the compiler so would take a second to import it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run `func` and record it."""
        result = func(*args, **(kwargs or {}))
        node = self._graph.call_function(func, *tree_map_only(Tensor, self._node, (args, kwargs or {})))
        if isinstance(result, Tensor):
            self._record(result, node)
        elif isinstance(result, tuple | list):
            for place, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._record(part, self._graph.call_function(operator.getitem, (node, place)))
        return result

    def module(self, results: tuple[Tensor, ...]) -> fx.GraphModule:
        """The recorded operations as a module that returns `results`."""
        self._graph.output(tuple(self._node(result) for result in results))
        self._graph.eliminate_dead_code()
        return fx.GraphModule(self._weights, self._graph)

    def _record(self, result: Tensor, node: fx.Node) -> None:
        node.meta["val"] = TensorMeta(result.shape, result.dtype)
        self._nodes[result] = node

    def _node(self, tensor: Tensor) -> fx.Node:
        if tensor not in self._nodes:
            # No operation made it: a weight.
            name = f"_weight{len(self._weights)}"
            self._weights[name] = tensor.detach()
            self._nodes[tensor] = self._graph.get_attr(name)
        node: fx.Node = self._nodes[tensor]
        return node


def _make_out_of_place(module: fx.GraphModule) -> None:
    """Replace in-place operations on results that nothing else reads by their out-of-place variants."""
    node: Any
    nodes: list[Any] = list(module.graph.nodes)
    for node in nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        name = node.target._schema.name.removeprefix("aten::")
        functional = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
        first = node.args[0] if node.args else None
        if functional is not None and isinstance(first, fx.Node) and single_user(first) == node:
            overload = node.target._overloadname
            if overload in functional.overloads():
                node.target = getattr(functional, overload)


def _fold_constants(module: fx.GraphModule) -> None:
    count = 0
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op != "call_function" or not inputs or any(each.op != "get_attr" for each in inputs):
            continue
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            continue
        values = {each: getattr(module, str(each.target)).detach() for each in inputs}
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        with torch.no_grad():
            value = node.target(*args, **kwargs)
        if not isinstance(value, Tensor):
            continue
        name = f"_folded{count}"
        count += 1
        module.register_buffer(name, value, persistent=False)
        with module.graph.inserting_before(node):
            folded = module.graph.get_attr(name)
        if node.target is aten._to_copy.default:
            folded.meta["exact"] = constant(module, inputs[0])
        elif len(inputs) == 1 and "exact" in inputs[0].meta:
            # A layout change of a rounded weight applies to the exact one too.
            folded.meta["exact"] = node.target(inputs[0].meta["exact"], *args[1:], **kwargs)
        node.replace_all_uses_with(folded)
