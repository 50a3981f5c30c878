"""The verb `train`, on a local Ray: one captioner from two workers, wrong usage, and kills."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from captioning.captioner import load_captioner
from captioning.storage import Location
from captioning.training.output import lock_output
from jobs.__main__ import app
from tests.tiny import TINY_RECIPE, write_tiny_shards

RECIPE = f"""{TINY_RECIPE}
epochs: 2
images_per_step: 4
log_every_steps: 2
save_every_steps: 2
workers: 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output + (result.stderr if result.stderr_bytes else "")


def test_two_workers_make_one_captioner(
    ray_local: None, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 14, "val": 4})
    output = tmp_path / "run"
    monkeypatch.chdir(tmp_path)  # where Ray's processes are not: they too must find what is named from here
    code, said = run("train", "--config", recipe.name, "--data", "shards", "-o", "run")
    assert code == 0, said
    assert "validation: CIDEr-D" in said
    assert load_captioner(str(output / "best")).name.startswith("run-best-")
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if r["kind"] == "validation"] == [4, 8]
    assert json.loads((output / "summary.json").read_text())["images_seen"] == 28

    code, said = run("train", "--config", recipe, "--data", "shards", "-o", "run")
    assert code == 0
    assert "finished" in said
    code, said = run("train", "--config", recipe, "--data", "shards", "-o", output, "--set", "epochs=3")
    assert code == 2
    assert "settings.epochs: 2 → 3" in said


def test_wrong_usage_ends_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    shards = tmp_path / "shards"
    for arguments, expected in [
        (["--data", tmp_path / "nowhere"], "prepare"),
        ([], "--data"),
        (["--data", shards, "--set", "epoch=3"], "unknown key 'epoch'"),
        (["--data", shards, "--set", "images_per_step=3"], "multiple of workers"),
        (["--data", shards, "--set", "validation.split=dev"], "dev"),
    ]:
        write_tiny_shards(shards, {"train": 2, "val": 2})
        code, said = run("train", "--config", recipe, *arguments, "-o", output)
        assert code == 2, said
        assert expected in said
        assert "Traceback" not in said
        assert not output.exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        # Found by the workers, which build the model.
        pytest.param("model.encoder.name=timm/no_such_net", "no_such_net", marks=pytest.mark.slow),
        ("gpu=true", "GPU"),
    ],
)
def test_what_only_the_workers_can_know_leaves_output_free(
    ray_local: None, recipe: Path, tmp_path: Path, wrong: str, said: str
) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 2, "val": 2})
    command = ["train", "--config", recipe, "--data", tmp_path / "shards", "-o", tmp_path / "run"]
    code, output = run(*command, "--set", wrong)
    assert code == 2
    assert said in output
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_folder_of_something_else_is_not_taken(recipe: Path, tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 2, "val": 2})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    code, said = run("train", "--config", recipe, "--data", tmp_path / "shards", "-o", tmp_path / "mine")
    assert code == 2
    assert "not empty" in said


def test_two_trainings_in_one_place_are_one_too_many(recipe: Path, tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 2, "val": 2})
    with lock_output(Location.parse(str(tmp_path / "run"))):
        code, said = run("train", "--config", recipe, "--data", tmp_path / "shards", "-o", tmp_path / "run")
        assert code == 2
        assert "Another training run is using" in said
    with lock_output(Location.parse(str(tmp_path / "run"))):
        pass


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(recipe: Path, tmp_path: Path) -> None:
    """SIGKILL to the driver and all of its Ray, twice; the weights are those of a run left alone."""
    write_tiny_shards(tmp_path / "shards", {"train": 64, "val": 4})
    settings = ["--set", "epochs=6", "--set", "save_every_steps=5"]

    def command(output: Path) -> list[str]:
        data = ["--data", str(tmp_path / "shards"), "-o", str(output)]
        return [sys.executable, "-m", "jobs", "train", "--config", str(recipe), *data, *settings]

    subprocess.run(command(tmp_path / "alone"), check=True, timeout=300)
    output = tmp_path / "killed"
    for state in ("step-00000005", "step-00000040"):
        process = subprocess.Popen(command(output), start_new_session=True)
        killed = False
        while process.poll() is None and not killed:
            states = output / "state"
            if states.is_dir() and any(found.name >= state for found in states.iterdir()):
                _kill_all(process.pid)
                killed = True
            time.sleep(0.02)
        process.wait()
        assert killed, "the run ended before it could be killed"
    subprocess.run(command(output), check=True, timeout=300)

    one, other = (load_file(folder / "best" / "model.safetensors") for folder in (tmp_path / "alone", output))
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 8, "val": 2})
    output = tmp_path / "run"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jobs", "train", "--config", str(recipe), "--data", str(tmp_path / "shards")),
            *("-o", str(output), "--set", "epochs=1000000"),  # it never ends by itself
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None and not list(output.glob("state/*/state.json")):
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    finally:
        if process.poll() is None:
            _kill_all(process.pid)
    assert process.returncode == 130, said
    assert "Training is saved up to step" in said
    assert "same command again" in said
    assert "Traceback" not in said


def _kill_all(leader: int) -> None:
    """SIGKILL a process and everything that descends from it, all stopped first so that nothing is born meanwhile."""
    found = [leader]
    for pid in found:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        os.kill(pid, signal.SIGSTOP)
        if children.exists():
            found += [int(child) for child in children.read_text().split()]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
