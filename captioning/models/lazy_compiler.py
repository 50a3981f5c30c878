"""Import timm, torchvision and transformers without PyTorch's compiler, until something compiles.

They refer to a few functions of `torch._dynamo` in definitions that captioners do not use (region
pooling, image tensors with boxes, a server's attention). Importing it takes as long as PyTorch itself,
a second and a half, in every process that loads a captioner.
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
#: Decorators, which may do nothing to functions that no captioner calls.
_DECORATORS = ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph", "nonstrict_trace")


@contextmanager
def without_compiler() -> Iterator[None]:
    """Imports in the body get a stub in place of `torch._dynamo`.

    Any attribute beyond the stub's imports the compiler itself. Does nothing where it is imported already.
    """
    spec = importlib.util.find_spec(_COMPILER) if _COMPILER not in sys.modules else None
    if spec is None:
        yield
        return
    compiler = _Stub(_COMPILER, **dict.fromkeys(_DECORATORS, _unchanged))
    utils = _Stub(_UTILS, is_compile_supported=_is_compile_supported)
    # For imports of its submodules.
    compiler.__path__ = list(spec.submodule_search_locations or ())
    sys.modules.update({_COMPILER: compiler, _UTILS: utils})
    try:
        yield
    finally:
        _remove_stubs()


class _Stub(ModuleType):
    """A module with a few of the real one's names, replaced by it when another is asked for."""

    def __init__(self, name: str, **names: Any) -> None:
        super().__init__(name)
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked up by the import system
            raise AttributeError(name)
        _remove_stubs()
        return getattr(importlib.import_module(self.__name__), name)


def _remove_stubs() -> None:
    for name in (_COMPILER, _UTILS):
        if isinstance(sys.modules.get(name), _Stub):
            del sys.modules[name]


def _unchanged(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    """A decorator that returns the function as it is."""
    return function if function is not None else _unchanged


def _is_compile_supported(device: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device))
