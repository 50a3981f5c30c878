"""timm, torchvision and transformers without PyTorch's compiler, until something compiles.

They name a few functions of `torch._dynamo` where they define what captioners have no use for (region
pooling, image tensors with boxes, a server's attention). Its import takes as long as PyTorch's own, a
second and a half, in every process that loads a captioner. Knows nothing of models.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_UTILS = "torch._dynamo.utils"
#: What it is to do with a function: all the same for those that no captioner calls.
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph", "nonstrict_trace")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Have what is imported in the body do without `torch._dynamo`, as far as it can.

    Whatever asks for more of it than those names gets the compiler itself, imported then. Does
    nothing where it has been imported already.
    """
    spec = importlib.util.find_spec(_COMPILER) if _COMPILER not in sys.modules else None
    if spec is None:
        yield
        return
    compiler = _StandIn(_COMPILER, **dict.fromkeys(_DECORATORS, _as_it_is))
    utils = _StandIn(_UTILS, is_compile_supported=_ask_later)
    # So that its other modules are found.
    compiler.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.update({_COMPILER: compiler, _UTILS: utils})
    try:
        yield
    finally:
        _remove_stand_ins()


class _StandIn(ModuleType):
    """Has a few of a module's names, and is replaced by the module when it is asked for another."""

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name)
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system's own questions
            raise AttributeError(name)
        _remove_stand_ins()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_stand_ins() -> None:
    for name in (_COMPILER, _UTILS):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


def _as_it_is(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """What the compiler does with a function that no captioner calls is all the same."""
    return function if function is not None else _as_it_is


def _ask_later(device: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))
