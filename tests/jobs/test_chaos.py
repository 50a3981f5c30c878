"""SIGKILL of any process of a run at any commit point: run again, and the table is that of a run left alone.

The kills are those of `chaos/sitecustomize.py`, seeded; `make test-all` does all of them.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.jobs.archive import assert_same_table, encode, picture, read_rows, write_photos
from tests.jobs.test_caption import kill_all

ROOT = Path(__file__).resolve().parents[2]
SEED = 4
PHOTOS, BAD = 18, 8
#: Shards of 2 images, parts of 3 shards.
SHARDS_PER_PART = 3
SETTINGS = ("--set", "output.shard_size=2", "--set", "runtime.actors=1", "--set", "errors.max_fraction=1")

#: Where a kill strikes, and how often a run comes there at least.
CAPTION = {"before staging": 13, "staged": 13, "before the fold": 5, "folded": 5}
RETRY = {"before staging again": 4, "staged again": 4, "before the rewrite": 2, "rewritten": 2}
DRIVER_CAPTION = {**CAPTION, "before the index counts": 1, "the index counts": 1, "cleaned": 13}
DRIVER_RETRY = {**RETRY, "before the plan": 1, "planned": 1, "amended": 2, "done again": 2, "forgotten": 1}


@dataclass(frozen=True)
class Kill:
    """SIGKILL of `target` when the command comes to `point` for the `number`th time (from 0)."""

    verb: str
    target: str
    point: str
    number: int
    runner: str = "ray"

    def __str__(self) -> str:
        where = "" if self.runner == "ray" else f" ({self.runner})"
        return f"{self.verb}: {self.target} at {self.point} #{self.number}{where}"


def kills(
    target: str, caption: dict[str, int], retry: dict[str, int], seed: int = SEED, runner: str = "ray"
) -> list[Kill]:
    """A kill at every point. The last occurrence is left out where there are several: all may be done by then."""
    chance = random.Random(f"{seed} {target}")
    return [
        Kill(verb, target, point, chance.randrange(max(1, count - 1)), runner)
        for verb, points in (("caption", caption), ("retry", retry))
        for point, count in points.items()
    ]


DRIVER_KILLS = kills("driver", DRIVER_CAPTION, DRIVER_RETRY) + kills("driver", CAPTION, {}, seed=SEED + 1)
RAYLET_KILLS = kills("raylet", CAPTION, RETRY)
WORKER_KILLS = [kill for target in ("worker", "decode") for kill in kills(target, CAPTION, RETRY)]
WORKER_KILLS += [kill for target in ("worker", "decode") for kill in kills(target, CAPTION, {}, seed=SEED + 1)]
LOCAL_KILLS = [kill for target in ("worker", "decode") for kill in kills(target, CAPTION, RETRY, runner="local")]
LOCAL_DRIVER_KILLS = kills("driver", CAPTION, RETRY, runner="local")


@dataclass(frozen=True)
class Setting:
    """Two archives, one of them mended after it was captioned; what undisturbed runs without Ray over them gave."""

    folder: Path
    model: Path

    def arguments(self, verb: str, output: Path, runner: str = "ray") -> list[str]:
        chosen = ["--set", f"runtime.runner={runner}"]
        if verb == "retry":
            return ["retry", str(output), *chosen]
        photos = str(self.folder / "photos")
        return ["caption", photos, "-o", str(output), "--model", str(self.model), *SETTINGS, *chosen]

    def begin(self, verb: str, name: str) -> Path:
        """A new OUTPUT: nothing to caption into, or a finished run to retry."""
        output = self.folder / f"out-{name}"
        shutil.rmtree(output, ignore_errors=True)
        if verb == "retry":
            shutil.copytree(self.folder / "out-failed", output)
        return output

    def expected(self, verb: str) -> Path:
        return self.folder / ("out-whole" if verb == "caption" else "out-retried")


def environment(orders: Path, **more: str) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT / "tests" / "jobs" / "chaos"), str(ROOT)])
    chaos = {"CHAOS_ORDERS": str(orders), "CHAOS_SHARDS_PER_PART": str(SHARDS_PER_PART)}
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **chaos, **more}


def order(orders: Path, kill: Kill) -> None:
    for path in orders.iterdir():
        path.unlink()
    for number in range(kill.number):
        (orders / f"{kill.point}.{number:03d}.nobody").touch()
    (orders / f"{kill.point}.{kill.number:03d}.{kill.target}").touch()


def struck(orders: Path, kill: Kill) -> bool:
    log = orders / "struck"
    lines = [line.split("\t") for line in log.read_text().splitlines()] if log.exists() else []
    assert all(line[:2] == [kill.point, kill.target] for line in lines), lines
    return any(line[2] != "None" for line in lines)


def run(arguments: list[str], orders: Path) -> tuple[int, str]:
    """One command in a process and a Ray of its own; whatever of it is left afterwards is killed."""
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs", *arguments],
        cwd=ROOT,
        env=environment(orders),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=500)
    finally:
        kill_all(process)
    return process.returncode, said


class Shared:
    """A driver process with one Ray, in which commands run one after another."""

    def __init__(self, orders: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.chaos.shared"],
            cwd=ROOT,
            env=environment(orders),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def run(self, arguments: list[str]) -> tuple[int, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps(arguments), file=self.process.stdin, flush=True)
        code, said = json.loads(self.process.stdout.readline())
        return code, said

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        kill_all(self.process)


@pytest.fixture(scope="module")
def orders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("orders")


@pytest.fixture(scope="module")
def shared(orders: Path) -> Iterator[Shared]:
    """Started when it is first needed, and once for all."""
    server = Shared(orders)
    yield server
    server.close()


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory, tiny_captioner: Path, shared: Shared) -> Setting:
    made = Setting(tmp_path_factory.mktemp("chaos"), tiny_captioner)
    for name in ("photos", "mended"):
        write_photos(made.folder / name, PHOTOS)
        for number in range(BAD):
            (made.folder / name / f"{number % 2}" / f"00{number:02d}-bad.jpg").write_text("no picture" * 9)
    arguments = made.arguments("caption", made.folder / "out-whole", "local")
    assert shared.run(arguments)[0] == 0
    failed = [argument.replace("photos", "mended").replace("out-whole", "out-failed") for argument in arguments]
    assert shared.run(failed)[0] == 0
    for number in range(0, BAD, 2):
        bad = made.folder / "mended" / f"{number % 2}" / f"00{number:02d}-bad.jpg"
        bad.write_bytes(encode(picture(300 + number), "JPEG"))
    shutil.copytree(made.folder / "out-failed", made.folder / "out-retried")
    assert shared.run(made.arguments("retry", made.folder / "out-retried", "local"))[0] == 0
    whole, retried = read_rows(made.folder / "out-whole"), read_rows(made.folder / "out-retried")
    assert len(whole) == len(retried) == PHOTOS + BAD
    assert len(list((made.folder / "out-whole").glob("part-*"))) == 5
    assert Counter(row["status"] for row in retried.values()) == {"ok": PHOTOS + BAD // 2, "error": BAD // 2}
    return made


Runner = Callable[[list[str]], tuple[int, str]]


def strike_and_run_again(kill: Kill, setting: Setting, orders: Path, first: Runner, again: Runner) -> None:
    output = setting.begin(kill.verb, "killed")
    arguments = setting.arguments(kill.verb, output, kill.runner)
    order(orders, kill)
    code, said = first(arguments)
    assert struck(orders, kill), f"{kill}: it ended without having been killed: {said}"
    assert "Traceback" not in said, f"{kill}: {said}"
    print(f"\n{kill}: exit {code}")
    if kill.target in ("worker", "decode"):
        assert code == 0, f"{kill}: {said}"  # the run itself goes on
    rows = read_rows(output) if output.exists() else {}  # a reader sees no row twice, whenever it looks
    if kill.verb == "retry":
        assert len(rows) == PHOTOS + BAD
    code, said = again(arguments)
    assert code == 0, f"{kill}: {said}"
    assert "Traceback" not in said, f"{kill}: {said}"
    assert_same_table(read_rows(setting.expected(kill.verb)), read_rows(output))
    assert not list((output / "_run" / "staging").glob("*.parquet"))
    assert not list((output / "_run" / "retry").glob("*"))
    assert not (output / "_run" / "hold.json").exists()


@pytest.mark.parametrize(
    "kill", [WORKER_KILLS[0], WORKER_KILLS[13], LOCAL_KILLS[0], LOCAL_KILLS[9], LOCAL_KILLS[13]], ids=str
)
def test_a_worker_killed(kill: Kill, setting: Setting, orders: Path, shared: Shared) -> None:
    strike_and_run_again(kill, setting, orders, shared.run, shared.run)


@pytest.mark.parametrize("kill", [DRIVER_KILLS[3], LOCAL_DRIVER_KILLS[7]], ids=str)
def test_a_driver_killed(kill: Kill, setting: Setting, orders: Path, shared: Shared) -> None:
    strike_and_run_again(kill, setting, orders, lambda arguments: run(arguments, orders), shared.run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kill", WORKER_KILLS + LOCAL_KILLS, ids=str)
def test_workers_and_decoding_tasks_killed(kill: Kill, setting: Setting, orders: Path, shared: Shared) -> None:
    strike_and_run_again(kill, setting, orders, shared.run, shared.run)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kill", DRIVER_KILLS + RAYLET_KILLS + LOCAL_DRIVER_KILLS, ids=str)
def test_drivers_and_raylets_killed(kill: Kill, setting: Setting, orders: Path, shared: Shared) -> None:
    strike_and_run_again(kill, setting, orders, lambda arguments: run(arguments, orders), shared.run)


def test_there_are_fifty_kills_at_every_point() -> None:
    assert len(DRIVER_KILLS + RAYLET_KILLS + WORKER_KILLS) >= 50
    for target in ("worker", "decode", "raylet", "driver"):
        struck_at = {kill.point for kill in DRIVER_KILLS + RAYLET_KILLS + WORKER_KILLS if kill.target == target}
        assert struck_at >= {*CAPTION, *RETRY}
