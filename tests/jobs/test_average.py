"""`average` from the command line: what it writes and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from captioning.captioner_info import inspect_captioner
from jobs.__main__ import app
from tests.tiny import save_tiny_captioner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("average")
    for seed in range(2):
        save_tiny_captioner(folder / f"run-{seed}" / "best", seed=seed)
    return folder


def run(folder: Path, output: str, *more: str, refs: int = 2) -> Result:
    names = [str(folder / f"run-{seed}" / "best") for seed in range(refs)]
    return CliRunner().invoke(app, ["average", *names, "-o", str(folder / output), *more])


def test_a_new_checkpoint_is_written(folder: Path) -> None:
    result = run(folder, "soup", "--weights", "0.75,0.25", "--set", "save_dtype=float16")
    assert result.exit_code == 0, result.output
    assert "75.0%  run-0-best" in result.output
    one, two = (load_file(folder / f"run-{seed}" / "best" / "model.safetensors") for seed in range(2))
    soup = load_file(folder / "soup" / "model.safetensors")["speak.weight"]
    assert soup.dtype == torch.float16
    mean = 0.75 * one["speak.weight"] + 0.25 * two["speak.weight"]
    torch.testing.assert_close(soup.float(), mean, rtol=1e-3, atol=1e-3)
    assert inspect_captioner(str(folder / "soup")).name.startswith("soup-")


def test_without_weights_all_count_the_same(folder: Path) -> None:
    assert run(folder, "equal").exit_code == 0
    parts = inspect_captioner(str(folder / "equal")).provenance["average"]
    assert [part["share"] for part in parts] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("more", "refs", "says"),
    [
        (["--weights", "1"], 2, "1 numbers for 2"),
        (["--weights", "a,b"], 2, "--weights"),
        (["--weights", "0,0"], 2, "not all 0"),
        ([], 1, "two checkpoints"),
        ([], 3, "no captioner"),
        (["--set", "save_dtype=int8"], 2, "save_dtype"),
    ],
)
def test_wrong_usage_writes_nothing(folder: Path, more: list[str], refs: int, says: str) -> None:
    result = run(folder, "nothing", *more, refs=refs)
    assert result.exit_code == 2, result.output
    assert says in result.output
    assert not (folder / "nothing").exists()


def test_a_folder_in_use_is_refused(folder: Path) -> None:
    result = run(folder, "run-0")
    assert result.exit_code == 2
    assert "not empty" in result.output
