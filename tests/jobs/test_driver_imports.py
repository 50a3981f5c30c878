"""Drivers and read-only verbs start quickly: only a process that loads a captioner imports PyTorch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captioning.refs import bundled_names
from jobs.__main__ import app
from tests.jobs.archive import write_photos
from tests.jobs.in_process import run_in_process

ROOT = Path(__file__).resolve().parent.parent.parent
VERBS = ("caption", "plan", "status", "verify", "retry", "report", "export")
#: Takes seconds to import, and hundreds of megabytes.
HEAVY = ("torch", "torchvision", "timm", "transformers", "tokenizers", "scipy", "pandas", "matplotlib")
#: Comes with the work: Ray when one is started, fsspec with an object store.
WITH_THE_WORK = ("ray", "fsspec")


def run_python(program: str, *arguments: str) -> subprocess.CompletedProcess:
    """Run `program` where a heavy import is an error, so that the traceback tells whose it is."""
    guard = f"""
import sys
class Refused(BaseException):
    pass
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name in {HEAVY + WITH_THE_WORK!r}:
            raise Refused(f"{{name}} is imported")
sys.meta_path.insert(0, Refusing())
"""
    return subprocess.run([sys.executable, "-c", guard + program, *arguments], cwd=ROOT, capture_output=True, text=True)


def imports_of(module: str) -> set[str]:
    """Modules of ours that a module imports anywhere, within its functions as well."""
    tree = ast.parse((ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8"))
    found = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    return {name for name in found if name.startswith(("jobs.", "captioning."))}


def drivers() -> set[str]:
    """The verbs' modules, those that do their work in the driver's process, and what decodes images."""
    verbs = {f"jobs.{verb}" for verb in VERBS}
    work = {name for verb in verbs for name in imports_of(verb) if name.startswith("jobs.")}
    beside = {"jobs.driving.driver", "jobs.driving.redo", "jobs.runners.pipeline", "jobs.workers.decode_child"}
    return verbs | work | beside


def test_what_drivers_import_is_light() -> None:
    runs = {"jobs.driving.caption_run", "jobs.driving.retry_run", "jobs.planning.run", "jobs.reporting.run"}
    assert runs <= drivers()
    modules = sorted(drivers().union(*map(imports_of, drivers())))
    done = run_python("import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)", *modules)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("ref", bundled_names())
def test_a_captioner_is_inspected_without_loading_it(ref: str) -> None:
    program = "from captioning.captioner_info import inspect_captioner\nprint(inspect_captioner(sys.argv[1]).name)"
    done = run_python(program, ref)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{ref}-")


def test_a_finished_run_is_driven_and_looked_at_lightly(tmp_path: Path, tiny_captioner: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", 6), tmp_path / "out"
    caption = ["caption", str(photos), "-o", str(output), "--model", str(tiny_captioner)]
    with pytest.MonkeyPatch.context() as patch:
        run_in_process(patch)
        assert CliRunner().invoke(app, caption).exit_code == 0
    commands = [
        caption,
        ["retry", str(output)],
        ["status", str(output)],
        ["verify", str(output)],
        ["report", str(output)],
        ["export", str(output), "--format", "txt", "-o", str(tmp_path / "captions")],
    ]
    program = f"""
from typer.testing import CliRunner
from jobs.__main__ import app
for command in {commands!r}:
    result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, (command, result.output)
"""
    done = run_python(program)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "captions").rglob("*.txt"))) == 6


@pytest.mark.parametrize("program", ["import torch", "from captioning import load_captioner"])
def test_a_heavy_import_is_found(program: str) -> None:
    done = run_python(program)
    assert done.returncode != 0
    assert "torch is imported" in done.stderr
