"""Captioning on a cluster whose machines are lost, cut off, drained or added gives the table of an undisturbed run."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.machines import Machine, Machines
from tests.cluster.networks import can_isolate
from tests.cluster.rehearsal import Job, Rehearsal, run_here
from tests.jobs.archive import assert_same_table, read_rows, write_photos

PHOTOS, SHARD_SIZE = 300, 2
SHARDS = PHOTOS // SHARD_SIZE
#: Seconds per shard, so that a run takes a minute and a half on any computer.
SECONDS = 2.0
CUT_SECONDS = 60

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@dataclass
class Run:
    """A caption run on the cluster; `whole` is the table that it should give."""

    rehearsal: Rehearsal
    arguments: list[str]
    output: Path
    whole: Path

    def begin(self) -> Job:
        return self.rehearsal.job("caption", *self.arguments, "-o", self.output)

    def done(self) -> int:
        """Shards that have been captioned, some more than once."""
        return len(self.rehearsal.noted("shards"))

    def check(self, job: Job) -> str:
        """It ends by itself, is verified, and has the table of an undisturbed run; returns its output."""
        code, said = job.end()
        assert code == 0, said
        assert "Traceback" not in said, said
        run_here(["verify", self.output])
        assert_same_table(read_rows(self.whole), read_rows(self.output))
        return said

    def events(self) -> list[str]:
        """The kinds of event in the run's event log."""
        lines = (self.output / "_run" / "events.jsonl").read_text().splitlines()
        return [json.loads(line)["event"] for line in lines]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, tiny_captioner: Path) -> tuple[list[str], Path]:
    folder = tmp_path_factory.mktemp("losses")
    photos = write_photos(folder / "photos", PHOTOS)
    arguments = [str(photos), "--model", str(tiny_captioner), "--set", f"output.shard_size={SHARD_SIZE}"]
    whole = folder / "whole"
    run_here(["caption", *arguments, "-o", whole, "--set", "runtime.runner=local"])
    return [*arguments, "--set", "runtime.runner=ray"], whole


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rehearsal]:
    with Rehearsal(tmp_path_factory.mktemp("pace"), seconds=SECONDS, head_cpus=0) as made:
        made.machines.add("one")
        made.machines.add("two")
        yield made


@pytest.fixture
def run(rehearsal: Rehearsal, archive: tuple[list[str], Path], tmp_path: Path) -> Run:
    """A run on two live workers."""
    machines = rehearsal.machines
    alive = [name for name, state in machines.states().items() if state == "ALIVE" and name != "head"]
    for _ in range(2 - len(alive)):
        machines.add()
    (rehearsal.folder / "shards").unlink(missing_ok=True)
    arguments, whole = archive
    return Run(rehearsal, arguments, tmp_path / "out", whole)


def workers(run: Run) -> list[str]:
    return [name for name, state in run.rehearsal.machines.states().items() if state == "ALIVE" and name != "head"]


def lose(run: Run, do: Callable[[Machines, Machine], None]) -> tuple[str, str]:
    """Do that to one of the workers in mid-run; its name, and the run's output."""
    job = run.begin()
    lost = run.rehearsal.machines.machine(workers(run)[0])
    # On a busy machine one worker can be done with several shards before the other has loaded its captioner.
    job.until(lambda: run.done() >= SHARDS // 8 and run.rehearsal.shares("shards")[lost.name] > 0)
    do(run.rehearsal.machines, lost)
    assert job.running, "it had ended before anything happened to it"
    return lost.name, run.check(job)


def test_a_worker_killed(run: Run) -> None:
    name, said = lose(run, Machines.kill)
    assert run.rehearsal.machines.states()[name] == "DEAD"
    assert "was lost; its shards run on other nodes" in said
    assert "node_lost" in run.events()


@pytest.mark.skipif(not can_isolate(), reason="machines with networks of their own want root and iproute2")
def test_a_worker_cut_off_for_a_minute(run: Run) -> None:
    def cut(machines: Machines, machine: Machine) -> None:
        machines.cut(machine)
        time.sleep(CUT_SECONDS)
        machines.mend(machine)

    lose(run, cut)


def test_a_worker_drained_and_gone_at_its_deadline(run: Run) -> None:
    def drain(machines: Machines, machine: Machine) -> None:
        machines.drain(machine, 20)
        time.sleep(20)
        machines.kill(machine)

    lose(run, drain)


def test_a_worker_that_comes_late_is_used(run: Run) -> None:
    job = run.begin()
    job.until(lambda: run.done() >= SHARDS // 20)
    late = run.rehearsal.machines.add("late", cpus=4)
    assert job.running, "it had ended before there was more to run on"
    said = run.check(job)
    assert "The cluster has grown" in said
    assert "node_joined" in run.events()
    assert run.rehearsal.shares("shards")[late.name] > 0
    run.rehearsal.machines.kill(late)


def test_the_head_lost_and_the_run_submitted_to_another_cluster(
    archive: tuple[list[str], Path], tmp_path: Path
) -> None:
    arguments, whole = archive
    output = tmp_path / "out"
    with Rehearsal(tmp_path / "first", seconds=SECONDS) as first:
        first.machines.add(cpus=2)
        job = Run(first, arguments, output, whole).begin()
        job.until(lambda: len(first.noted("shards")) >= SHARDS // 8)
        first.machines.kill(first.machines.head)
        job.process.wait()
    kept = {path.name for path in (output / "_run" / "staging").glob("*.parquet")}
    assert kept
    with Rehearsal(tmp_path / "second", seconds=0) as second:
        second.machines.add(cpus=2)
        again = Run(second, arguments, output, whole)
        again.check(again.begin())
        assert len(second.noted("shards")) <= SHARDS - len(kept)
    shutil.rmtree(output)
