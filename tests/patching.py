"""Patches modules of processes under test when they are imported; for a `sitecustomize` on their PYTHONPATH."""

import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from typing import Any


def patch_on_import(changes: Mapping[str, Callable[[Any], None]]) -> None:
    """Patch the modules of these names with these functions, in this process."""
    sys.meta_path.insert(0, _Patching(changes))


class _Patching(MetaPathFinder):
    def __init__(self, changes: Mapping[str, Callable[[Any], None]]) -> None:
        self._changes = changes

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._changes:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            self._changes[name](module)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
