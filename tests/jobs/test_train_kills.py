"""SIGKILL at twenty moments of a two-worker run, resumed each time: it ends as one left alone. Without Ray: quicker."""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from captioning.captioner import load_captioner
from tests.jobs.gloo_workers import Attempt
from tests.tiny import write_tiny_shards

RECIPE = """
data: {data}
model:
  kind: cnn_lstm
  encoder: {{name: timm/test_efficientnet, weights: random, tune_from: blocks.2}}
  embedding_size: 16
  hidden_size: 16
  heads: 2
  dropout: 0.1
tokenizer: {{min_count: 1}}
preprocess: {{size: 32, mode: squash}}
decoding: {{beam_size: 1, max_new_tokens: 8}}
search: {{beam_sizes: [1, 2], length_penalties: [1.0], repetition_penalties: [1.0], no_repeat_ngram_sizes: [0, 2]}}
optim: {{lr: 0.01, pretrained_lr: 0.003, warmup_steps: 3, ema_decay: 0.9}}
images_per_step: 4
images_per_pass: 1
crop: 0.7
views: 3
log_every_steps: 2
save_every_steps: 2
workers: 2
stages:
  - {{name: encoder, epochs: 2}}
  - {{name: decoder, epochs: 3, feature_cache: auto, tune: {{encoder: {{tune_from: null}}}}, scheduled_sampling: 0.3}}
  - {{name: reward, objective: self_critical, epochs: 3, feature_cache: auto, tune: {{encoder: {{tune_from: null}}}}}}
"""
STEPS = 48

#: How many kills aim at what, and how many must hit it. `step` is wherever the run is a while after a step.
KILLS = {"state": 7, "best": 4, "validation": 2, "entering": 2, "start": 2, "step": 2, "search": 1}
LEAST = {"state": 6, "best": 3, "validation": 1, "entering": 1, "start": 1, "search": 1}
#: So many steps after the one that it aims at, a kill strikes wherever the run is.
PATIENCE = 8
SEED = 7


@dataclass(frozen=True)
class Aim:
    """A kill at the first moment of its kind at `step` or after it, when `files` are written and `wait` (s) is over."""

    kind: str
    step: int
    files: int
    wait: float


def aims(moments: Sequence[tuple[int, str]], chance: random.Random) -> list[Aim]:
    """Kills at moments that a run comes to, spread over all of it. In their order: none is aimed at what is over."""
    places = {kind: [at for at, (step, what) in enumerate(moments) if what == kind and step] for kind in KILLS}
    # Soon after a start a kill strikes whatever may come later; behind the last two states comes no other.
    places["start"] = list(range(len(moments)))
    del places["state"][-2:]
    chosen: list[tuple[int, str]] = []
    for kind, count in KILLS.items():
        for number in range(count):
            first, last = (len(places[kind]) * share // count for share in (number, number + 1))
            chosen.append((places[kind][chance.randrange(first, max(last, first + 1))], kind))
    return [Aim(kind, moments[at][0], chance.randint(0, 3), chance.uniform(0, 0.08)) for at, kind in sorted(chosen)]


def half_written(output: Path, since: int = 0) -> list[Path]:
    """Folders of states that have no marker, touched after `since` (ns)."""
    states = sorted((output / "state").glob("step-*"))
    return [folder for folder in states if not (folder / "state.json").exists() and touched(folder, since)]


def replacing_best(output: Path, since: int = 0) -> bool:
    """Whether one checkpoint is just taking the place of another."""
    return any(touched(output / name, since) for name in (".best-new", ".best-old"))


def touched(folder: Path, since: int) -> bool:
    try:
        return folder.stat().st_mtime_ns >= since
    except FileNotFoundError:
        return False


def newest_whole(output: Path) -> int:
    """The step of the newest state that has all of its files, told without the code under test; 0 for none."""
    steps = [0]
    for marker in (output / "state").glob("step-*/state.json"):
        values = json.loads(marker.read_text())
        files = {path.name: path.stat().st_size for path in marker.parent.glob("*.safetensors")}
        if files == values["files"]:
            steps.append(values["progress"]["step"])
    return max(steps)


def aimed(aim: Aim, attempt: Attempt, output: Path) -> Callable[[], bool]:
    """When to strike."""
    since: list[float] = []

    def waited() -> bool:
        since.append(time.monotonic())
        return time.monotonic() >= since[0] + aim.wait

    def now() -> bool:
        at, phase = attempt.phase
        if aim.kind == "start":
            return waited()
        if at < aim.step:
            return False
        if at > aim.step + PATIENCE:
            return True
        if aim.kind == "state":
            return any(
                len(list(half.glob("*.safetensors"))) >= aim.files for half in half_written(output, attempt.started)
            )
        if aim.kind == "best":
            # With all of its files there, the one before makes place.
            old, new = output / ".best-old", output / ".best-new"
            late = aim.files == 3 and (output / "best").exists()
            return touched(old if late else new, attempt.started) and (late or len(list(new.glob("*"))) >= aim.files)
        return (phase == aim.kind or aim.kind == "step") and waited()

    return now


def struck(attempt: Attempt, output: Path) -> list[str]:
    """Where a kill has struck, from what is on disk: what the run was at, and what was being written."""
    found = [attempt.phase[1]]
    if half_written(output, attempt.started):
        found.append("state")
    if replacing_best(output, attempt.started):
        found.append("best")
    return found


def files_there(output: Path, attempt: Attempt) -> str:
    """The files of what was being written when a kill struck."""
    folders = half_written(output, attempt.started)
    folders += [output / name for name in (".best-new", ".best-old") if touched(output / name, attempt.started)]
    return "; ".join(f"{folder.name}: {', '.join(sorted(p.name for p in folder.iterdir()))}" for folder in folders)


@pytest.fixture
def attempts() -> Iterator[list[Attempt]]:
    started: list[Attempt] = []
    yield started
    for attempt in started:
        attempt.stop()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_change_nothing(tmp_path: Path, attempts: list[Attempt]) -> None:
    write_tiny_shards(tmp_path / "shards", {"train": 24, "val": 5})
    recipe = RECIPE.format(data=tmp_path / "shards")

    def begin(name: str, number: int) -> Attempt:
        attempts.append(Attempt(recipe, tmp_path / name / "run", tmp_path / f"{name}-{number}"))
        return attempts[-1]

    begun = time.monotonic()
    undisturbed = begin("alone", 0)
    assert undisturbed.wait() == [0, 0]
    alone, output = tmp_path / "alone" / "run", tmp_path / "killed" / "run"
    print(f"\nundisturbed: {STEPS} steps in {time.monotonic() - begun:.1f} s")

    told: Counter[str] = Counter()
    plan = aims(undisturbed.moments, random.Random(SEED))
    for number, aim in enumerate(plan):
        whole = newest_whole(output)
        attempt = begin("killed", number)
        assert attempt.strike(aimed(aim, attempt, output)), f"{aim}: it ended before"
        if attempt.begun is not None:
            # It went on from the newest state that is whole, never from half of one.
            assert attempt.begun == whole
        where = struck(attempt, output)
        told.update(where)
        print(
            f"kill {number + 1:2}, aimed at {aim.kind:10} from step {aim.step:2} on: went on from step {whole:2}, "
            f"struck at step {attempt.phase[0]:2}, {' and '.join(where)}. {files_there(output, attempt)}"
        )
    attempt = begin("killed", len(plan))
    whole = newest_whole(output)
    assert attempt.wait() == [0, 0]
    assert attempt.begun == whole
    print(f"went on from step {whole} to the end; {time.monotonic() - begun:.0f} s in all")

    assert len(plan) == 20
    print("struck in the midst of " + ", ".join(f"{kind}: {count}" for kind, count in sorted(told.items())))
    assert all(told[kind] >= count for kind, count in LEAST.items()), told
    worst = max(compare(path, output / path.relative_to(alone)) for path in weights_of(alone))
    assert weights_of(output, relative=True) == weights_of(alone, relative=True)
    print(
        f"largest difference of {len(weights_of(alone))} files of weights: {worst:.1e} of the tensor's largest number"
    )
    assert worst <= 1e-6
    assert records(output) == records(alone)
    for name in ("config.json", "README.md"):
        assert (output / "best" / name).read_bytes() == (alone / "best" / name).read_bytes()
    assert load_captioner(str(output / "best"))
    assert not half_written(output)
    assert not replacing_best(output)


def weights_of(output: Path, *, relative: bool = False) -> list[Path]:
    """All weights that a run leaves: its states' (with optimiser and averages), its stages' best, its checkpoint's."""
    found = sorted(output.rglob("*.safetensors"))
    return [path.relative_to(output) for path in found] if relative else found


def compare(one: Path, other: Path) -> float:
    """The largest difference of two files' tensors, as a share of the tensor's largest number."""
    expected, found = load_file(one), load_file(other)
    assert expected.keys() == found.keys()
    assert expected.keys()
    return max(difference(value, found[name]) for name, value in expected.items())


def difference(expected: torch.Tensor, found: torch.Tensor) -> float:
    if not expected.numel():
        return 0.0
    scale = float(expected.abs().max()) or 1.0
    return float((expected.double() - found.double()).abs().max()) / scale


def records(output: Path) -> list[list[object]]:
    """What was recorded, but for times and rates, and for lines about what was already done."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    keys = ("kind", "step", "stage", "epoch", "images_seen", "best", "samples", "lr", "cider_d")
    return [[line.get(key) for key in keys] for line in lines if line["kind"] != "note"]
