"""`retry`: the failed rows alone, with the run's own captioner. The pipeline runs in this process, without Ray."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from captioning.run.events import read_events
from captioning.run.layout import RunLayout
from captioning.run.lock import RunLock
from captioning.storage import Location
from jobs.__main__ import app
from jobs.runners.pools import Pools
from jobs.runners.work import ShardResult, Work
from jobs.status_facts import errors_in_log
from tests.jobs.archive import encode, picture, read_rows, write_odd_files, write_photos
from tests.jobs.in_process import in_process, run_in_process, run_with
from tests.tiny import save_tiny_captioner


@pytest.fixture(autouse=True)
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)


@pytest.fixture
def output(tmp_path: Path, tiny_captioner: Path) -> Path:
    """A run of 20 photos, and nine odd files: four failed."""
    write_photos(tmp_path / "photos", 20)
    write_odd_files(tmp_path / "photos")
    done = verb("caption", tmp_path / "photos", "-o", tmp_path / "out", "--model", tiny_captioner)
    assert done.exit_code == 0, done.output
    return tmp_path / "out"


def verb(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def retry(output: Path) -> Callable[..., Result]:
    return lambda *arguments: verb("retry", output, *arguments)


def mend(output: Path, *names: str) -> None:
    for number, name in enumerate(names):
        kind = "PNG" if name.endswith("png") else "JPEG"
        (output.parent / "photos" / name).write_bytes(encode(picture(500 + number), kind))


def summary(output: Path) -> dict:
    return json.loads((output / "_run" / "summary.json").read_text())


def test_repaired_images_get_captions_and_other_rows_stay(output: Path, retry) -> None:
    before = read_rows(output)
    mend(output, "cut.jpg", "empty.jpg")
    (output.parent / "photos" / "text.jpg").unlink()
    done = retry()
    assert done.exit_code == 0, done.output
    assert "2 now have captions, 2 failed again" in done.stdout
    assert "2 of 29 images failed and have an error row: 1 missing, 1 too_large." in done.stdout
    after = read_rows(output)
    assert {name for name in after if after[name] != before[name]} == {"cut.jpg", "empty.jpg", "text.jpg"}
    assert after["cut.jpg"]["caption"]
    assert (after["cut.jpg"]["status"], after["cut.jpg"]["width"]) == ("ok", 40)
    assert after["cut.jpg"]["size_bytes"] == (output.parent / "photos" / "cut.jpg").stat().st_size
    assert after["text.jpg"]["error_class"] == "missing"
    assert summary(output).items() >= {"inputs": 29, "captioned": 2, "errors": 2, "already_done": 25}.items()
    events = read_events(RunLayout(Location.parse(str(output))))
    assert [event["event"] for event in events[-3:]] == ["retry", "shards", "finished"]
    assert errors_in_log(events) == {"missing": 1, "too_large": 1}
    assert verb("verify", output).exit_code == 0
    photos = output.parent / "photos"
    model = json.loads((output / "_run" / "run.json").read_text())["settings"]["model"]
    again = verb("caption", photos, "-o", output, "--model", model)
    assert again.stdout.startswith("Nothing to do")
    assert "changed" not in again.stderr


def test_one_class_and_nothing_to_do(output: Path, retry) -> None:
    mend(output, "cut.jpg", "empty.jpg", "text.jpg", "huge.png")
    one = retry("--error-class", "truncated", "--error-class", "network")
    assert "1 now has a caption, 0 failed again" in one.stdout
    none = retry("--error-class", "truncated")
    assert none.exit_code == 0
    assert "Nothing to retry: " in none.stdout
    assert none.stdout.splitlines()[0].endswith("no failed rows of class truncated.")
    assert retry().exit_code == 0
    assert summary(output).items() >= {"captioned": 3, "errors": 0}.items()
    assert {row["status"] for row in read_rows(output).values()} == {"ok"}


def test_an_interrupted_retry_goes_on_with_what_it_has(output: Path, retry, monkeypatch) -> None:
    mend(output, "cut.jpg", "empty.jpg", "text.jpg", "huge.png")

    def interrupted(work: Work, pools: Pools, shards: Sequence[int]) -> Iterator[ShardResult]:
        yield from in_process(work, pools, shards[:1])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        run_with(patch, interrupted)
        stopped = retry()
    assert stopped.exit_code == 130
    assert "Run the same command again to resume." in stopped.stderr
    assert len(read_rows(output)) == 29
    done = retry()
    assert done.exit_code == 0, done.output
    assert "Resuming an unfinished retry." in done.stderr
    assert 0 < summary(output)["captioned"] < 4
    assert {row["status"] for row in read_rows(output).values()} == {"ok"}
    assert not list((output / "_run" / "retry").iterdir())


def test_two_retries_in_one_count_an_image_once(output: Path, retry, monkeypatch) -> None:
    def killed(*arguments: object) -> Iterator[ShardResult]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        run_with(patch, killed)
        assert retry("--error-class", "empty").exit_code == 130
    left = output / "_run" / "retry" / "0123abcd-part-00000000-00000255.parquet"
    left.write_bytes(b"of a plan that was killed before it counted")
    done = retry()
    assert done.exit_code == 0, done.output
    assert "0 now have captions, 4 failed again" in done.output
    assert summary(output).items() >= {"inputs": 29, "captioned": 0, "errors": 4, "already_done": 25}.items()
    left.write_bytes(b"of another")
    assert retry("--error-class", "none").exit_code == 0
    assert not list((output / "_run" / "retry").iterdir())


def test_caption_finishes_what_a_retry_left(output: Path, retry, monkeypatch, tiny_captioner: Path) -> None:
    mend(output, "cut.jpg")

    def killed(*arguments: object) -> Iterator[ShardResult]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        run_with(patch, killed)
        assert retry().exit_code == 130
    done = verb("caption", output.parent / "photos", "-o", output, "--model", tiny_captioner)
    assert done.exit_code == 0, done.output
    assert read_rows(output)["cut.jpg"]["status"] == "ok"
    assert not list((output / "_run" / "retry").iterdir())


def test_too_many_errors_end_with_1(retry) -> None:
    done = retry("--set", "errors.max_fraction=0.01")
    assert done.exit_code == 1
    assert "errors.max_fraction=0.01" in done.stderr


def test_a_table_with_a_part_missing_is_retried_and_ends_with_1(output: Path, retry) -> None:
    [part] = output.glob("part-*.parquet")
    part.unlink()
    done = retry()
    assert done.exit_code == 1
    assert "then run: python -m jobs caption" in done.stderr


def test_a_checkpoint_that_moved_and_one_that_is_another(tmp_path: Path, tiny_captioner: Path, output, retry) -> None:
    mend(output, "cut.jpg")
    record = output / "_run" / "run.json"
    values = json.loads(record.read_text())
    values["settings"]["model"] = str(tmp_path / "moved-away")
    record.write_text(json.dumps(values))
    lost = retry()
    assert lost.exit_code == 2
    assert "moved-away" in lost.stderr
    other = save_tiny_captioner(tmp_path / "other" / "tiny", seed=3)
    wrong = retry("--model", other)
    assert wrong.exit_code == 2
    assert "The captioner is not the one" in wrong.stderr
    assert "captioner.files" in wrong.stderr
    moved = shutil.copytree(tiny_captioner, tmp_path / "here" / "tiny")
    done = retry("--model", moved)
    assert done.exit_code == 0, done.output
    assert read_rows(output)["cut.jpg"]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--set", "decoding.beam_size=1"), "decoding is fixed for a run"),
        (("--set", "output.shard_size=1"), "output is fixed for a run"),
        (("--set", "runtime.precision=bf16"), 'captioner.precision: "fp32" → "bf16"'),
        (("--set", "storage.endpont=x"), "Did you mean 'endpoint'"),
    ],
)
def test_what_is_the_runs_own_cannot_be_changed(output: Path, retry, arguments, says) -> None:
    before = read_rows(output)
    done = retry(*arguments)
    assert done.exit_code == 2, done.output
    assert says in " ".join(done.stderr.split())
    assert read_rows(output) == before


def test_no_run_and_a_locked_one(tmp_path: Path, output: Path, retry) -> None:
    nothing = verb("retry", tmp_path / "nowhere")
    assert nothing.exit_code == 2
    assert "There is no run in" in nothing.stderr
    assert not (tmp_path / "nowhere").exists()
    with RunLock(RunLayout(Location.parse(str(output))), notify=print, command="caption photos"):
        held = retry()
    assert held.exit_code == 1
    assert "caption photos" in held.stderr
