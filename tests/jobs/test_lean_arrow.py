"""pyarrow does not import pandas until it is asked to."""

import subprocess
import sys

import pytest

START = "import sys\nimport pyarrow as pa\nfrom jobs.lean_arrow import lean_arrow\n"
TABLE = "table = pa.table({'a': [1, 2], 'b': ['x', None]})\n"
LOADED = "print('pandas' in sys.modules)\n"


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_arrays_are_made_without_pandas() -> None:
    assert run(f"{START}{TABLE}{LOADED}") == "True\n", "pyarrow no longer imports pandas: lean_arrow can go"
    assert run(f"{START}lean_arrow()\n{TABLE}{LOADED}") == "False\n"


@pytest.mark.parametrize(
    "asked",
    [
        "import pandas\nassert table.to_pandas()['b'][0] == 'x'",
        "import pandas\nassert pa.Table.from_pandas(pandas.DataFrame({'a': [1, 2]})).equals(table.select(['a']))",
    ],
)
def test_pandas_is_imported_when_asked_for(asked: str) -> None:
    series = "assert pa.array(pandas.Series([1.0, None])).null_count == 1\n"
    run(f"{START}lean_arrow()\n{TABLE}{asked}\n{series}lean_arrow()\n{series}")
