"""Training on two machines, one of which is lost, resumes from its last saved state and ends with the same weights."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cluster.rehearsal import Job, Rehearsal, run_here
from tests.tiny import TINY_RECIPE, write_tiny_shards

RECIPE = f"""{TINY_RECIPE}
images_per_step: 4
images_per_pass: 1
log_every_steps: 2
workers: 2
"""
#: Steps of an epoch, and the interval at which states are saved.
EPOCH, SAVED = 16, 5

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """The arguments of `train`, except OUTPUT and the epochs."""
    write_tiny_shards(tmp_path / "shards", {"train": 4 * EPOCH, "val": 4})
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    chosen = ["train", "--config", str(tmp_path / "recipe.yaml"), "--data", str(tmp_path / "shards")]
    return [*chosen, "--set", f"save_every_steps={SAVED}"]


def steps(rehearsal: Rehearsal, world: int | None = None) -> list[tuple[str, int]]:
    """The machine and the step of each step of rank 0, in order; only in groups of `world` workers, if given."""
    return [
        (machine, int(step))
        for machine, rank, of, step in rehearsal.noted("steps")
        if rank == "0" and (world is None or int(of) == world)
    ]


def in_mid_epoch(rehearsal: Rehearsal, beyond: int) -> Callable[[], bool]:
    """Whether training is past step `beyond`, neither at a saved step nor at the end of an epoch."""

    def reached() -> bool:
        done = steps(rehearsal)
        return bool(done) and done[-1][1] > beyond and done[-1][1] % SAVED == 2 and 2 < done[-1][1] % EPOCH < EPOCH - 2

    return reached


def strike(rehearsal: Rehearsal, job: Job, rank: str) -> int:
    """SIGKILL the machine of that rank in mid-epoch; the step of the newest saved state."""
    job.until(in_mid_epoch(rehearsal, beyond=EPOCH))
    [*_, machine] = [line[0] for line in rehearsal.noted("steps") if line[1] == rank]
    rehearsal.machines.kill(rehearsal.machines.machine(machine))
    return steps(rehearsal)[-1][1] // SAVED * SAVED


def check(output: Path, alone: Path, epochs: int) -> None:
    """The run has finished its epochs with the weights of the undisturbed run."""
    assert json.loads((output / "summary.json").read_text())["step"] == epochs * EPOCH
    mine, theirs = (load_file(place / "best" / "model.safetensors") for place in (output, alone))
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name


@pytest.mark.parametrize("rank", ["0", "1"])
def test_one_of_two_machines_killed_in_mid_epoch(arguments: list[str], tmp_path: Path, rank: str) -> None:
    chosen = [*arguments, "--set", "epochs=3"]
    run_here([*chosen, "-o", tmp_path / "alone"])
    with Rehearsal(tmp_path / "pace", seconds=0.3, head_cpus=0) as rehearsal:
        for name in ("one", "two"):
            rehearsal.machines.add(name)
        job = rehearsal.job(*chosen, "-o", tmp_path / "run")
        saved = strike(rehearsal, job, rank)
        assert set(rehearsal.shares("steps")) == {"one", "two"}, "both machines train"
        before = len(steps(rehearsal))
        code, said = job.end()
        assert code == 0, said
        assert "Traceback" not in said, said
        assert "Resuming from step" in said
        # The other machine may still finish the current step.
        after = [step for _, step in steps(rehearsal)[before:] if step <= saved + SAVED - 3]
        assert after[0] in (saved + 1, saved + 1 - SAVED), "it does not begin anew"
    check(tmp_path / "run", tmp_path / "alone", epochs=3)


def test_fewer_workers_go_on_and_later_ones_join_in(arguments: list[str], tmp_path: Path) -> None:
    """With room for one worker a machine, and `min_workers=1`."""
    chosen = [*arguments, "--set", "epochs=14", "--set", "min_workers=1"]
    run_here([*chosen, "-o", tmp_path / "alone"])
    with Rehearsal(tmp_path / "pace", seconds=0.5, head_cpus=0) as rehearsal:
        for name in ("one", "two"):
            rehearsal.machines.add(name, cpus=1)
        job = rehearsal.job(*chosen, "-o", tmp_path / "run")
        strike(rehearsal, job, "1")
        job.until(lambda: bool(steps(rehearsal, world=1)))
        alone = len(steps(rehearsal, world=2))
        rehearsal.machines.add("late", cpus=1)
        job.until(lambda: len(steps(rehearsal, world=2)) > alone)
        assert rehearsal.shares("steps")["late"]
        code, said = job.end()
        assert code == 0, said
        assert "Traceback" not in said, said
    check(tmp_path / "run", tmp_path / "alone", epochs=14)
