"""pyarrow with as little memory as it needs, for programs of ours: without pandas, and with malloc's pool.

pyarrow imports pandas, where it is installed, with the first array that it makes, so as to know one of
pandas's should it come by: 0.2 seconds and 40 MB in every process. And its own allocator keeps what is
freed for each thread apart: folding 320 shards took 22 MB more with it than with malloc. Knows nothing of arrays.
"""

import sys
from importlib.abc import MetaPathFinder


def lean_arrow() -> None:
    """Have pyarrow do with less in this process: malloc, and no pandas until something asks for that by name.

    `to_pandas` and `from_pandas` import pandas then and work as ever. For the beginning of a program of
    ours, not for a library: pyarrow takes a bare DataFrame or Series for nothing special from here on.
    Leaves pandas alone where it has been imported already.
    """
    import pyarrow

    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    if "pandas" in sys.modules:
        return
    hidden = _Hidden()
    sys.meta_path.insert(0, hidden)
    try:
        pyarrow.scalar(0)  # pyarrow looks for it once
    finally:
        sys.meta_path.remove(hidden)


class _Hidden(MetaPathFinder):
    """Says that pandas is not installed."""

    def find_spec(self, name: str, path: object, target: object = None) -> None:  # noqa: ARG002 - an importer's arguments
        if name == "pandas":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
