"""The flow of `caption`: checks, resume, growth, interrupts. The pipeline runs in this process, without Ray."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import jobs.driving.caption_run
import jobs.driving.driver
from captioning.run.events import read_events
from captioning.run.layout import RunLayout
from captioning.run.lock import LockOwner, RunLock, lock_owner
from captioning.run.staging import FoldResult
from captioning.storage import Location
from jobs.__main__ import app
from jobs.runners.pools import Pools
from jobs.runners.work import ShardResult, Work
from tests.jobs.archive import assert_same_table, encode, picture, read_rows, write_odd_files, write_photos
from tests.jobs.in_process import in_process, run_in_process, run_with


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_process(monkeypatch)


@pytest.fixture
def no_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if anything is started or loaded."""

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("nothing may be started")

    monkeypatch.setattr(jobs.driving.driver, "open_runner", forbidden)
    monkeypatch.setattr("captioning.captioner.load_captioner", forbidden)


def never_fold(patch: pytest.MonkeyPatch) -> None:
    """A driver that is killed before it folds."""
    patch.setattr(jobs.driving.caption_run, "fold", lambda layout, index: None)
    patch.setattr("captioning.run.folding.fold_range", lambda layout, index, part: FoldResult((), ()))


@pytest.fixture
def caption(tiny_captioner: Path) -> Callable[..., Result]:
    def run(*arguments: str | Path, model: Path | str | None = tiny_captioner) -> Result:
        chosen = ["--model", str(model)] if model else []
        return CliRunner().invoke(app, ["caption", *map(str, arguments), *chosen])

    return run


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def summary(output: Path) -> dict:
    return json.loads((output / "_run" / "summary.json").read_text())


def staged(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "_run" / "staging").glob("*.parquet"))


@pytest.mark.usefixtures("without_ray")
def test_a_run_is_whole_then_has_nothing_to_do_then_grows(tmp_path: Path, caption, monkeypatch) -> None:
    photos, output = write_photos(tmp_path / "photos", 20), tmp_path / "out"
    settings = ("--set", "output.shard_size=4")
    first = caption(photos, "-o", output, *settings)
    assert first.exit_code == 0, first.output
    rows = read_rows(output)
    assert len(rows) == 20
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert len({row["caption"] for row in rows.values()}) > 1
    assert summary(output).items() >= {"inputs": 20, "captioned": 20, "errors": 0, "already_done": 0}.items()
    assert summary(output)["stages"].keys() == {"fetch", "decode", "model", "write"}
    assert staged(output) == []
    assert sum(event.get("images", 0) for event in read_events(RunLayout(Location.parse(str(output))))) == 20
    assert CliRunner().invoke(app, ["verify", str(output)]).exit_code == 0

    with monkeypatch.context() as patch:
        patch.setattr(jobs.driving.driver, "open_runner", lambda *_: pytest.fail("nothing may be started"))
        again = caption(photos, "-o", output, *settings)
    assert again.exit_code == 0
    assert again.stdout.startswith("Nothing to do: of 20 images in the archive, all")
    assert summary(output).items() >= {"captioned": 0, "already_done": 20}.items()

    write_photos(photos, 3, first=100)
    grown = caption(photos, "-o", output)
    assert grown.exit_code == 0, grown.output
    assert summary(output).items() >= {"inputs": 23, "captioned": 3, "already_done": 20}.items()
    after = read_rows(output)
    assert len(after) == 23
    assert_same_table(rows, {image_id: after[image_id] for image_id in rows})

    other = caption(photos, "-o", output, "--set", "decoding.beam_size=1")
    assert other.exit_code == 2
    assert "decoding.beam_size: 2 → 1" in other.stderr
    assert read_rows(output).keys() == after.keys()

    cut = caption(photos, "-o", output, "--set", "output.shard_size=5")
    assert cut.exit_code == 2
    assert "shards of 4 images" in cut.stderr


@pytest.mark.usefixtures("without_ray")
def test_a_first_look_is_of_what_was_selected_and_of_nothing_else(tmp_path: Path, caption) -> None:
    photos, output = write_photos(tmp_path / "photos", 20), tmp_path / "out"
    flags = ("--sample", "6", "--where", "image_id like '1/%'")
    first = caption(photos, "-o", output, *flags)
    assert first.exit_code == 0, first.output
    assert "6 images selected by --sample 6 --where image_id like '1/%'" in first.stderr
    rows = read_rows(output)
    assert len(rows) == 6
    assert all(image_id.startswith("1/") for image_id in rows)
    write_photos(photos, 5, first=100)
    again = caption(photos, "-o", output, *flags)
    assert again.exit_code == 0, again.output
    assert read_rows(output) == rows
    for other, says in (((), "--sample: 6 → (none)"), (("--limit", "6", *flags[2:]), "--limit: (none) → 6")):
        refused = caption(photos, "-o", output, *other)
        assert refused.exit_code == 2
        assert says in refused.stderr


@pytest.mark.usefixtures("without_ray")
def test_exactly_the_shards_that_are_missing_come_back(tmp_path: Path, caption, monkeypatch) -> None:
    photos = write_photos(tmp_path / "photos", 18)
    whole, output = tmp_path / "whole", tmp_path / "out"
    settings = ("--set", "output.shard_size=4")
    assert caption(photos, "-o", whole, *settings).exit_code == 0
    with monkeypatch.context() as patch:
        never_fold(patch)
        assert caption(photos, "-o", output, *settings).exit_code == 1
    assert len(staged(output)) == 5
    for number in (1, 4):
        (output / "_run" / "staging" / f"shard-{number:08d}.parquet").unlink()
    done = caption(photos, "-o", output, *settings)
    assert done.exit_code == 0, done.output
    assert summary(output).items() >= {"captioned": 4 + 2, "already_done": 12}.items()
    assert_same_table(read_rows(whole), read_rows(output))


@pytest.mark.usefixtures("without_ray")
def test_a_damaged_staged_file_is_made_again(tmp_path: Path, caption, monkeypatch) -> None:
    photos, output = write_photos(tmp_path / "photos", 8), tmp_path / "out"
    with monkeypatch.context() as patch:
        never_fold(patch)
        caption(photos, "-o", output, "--set", "output.shard_size=4")
    (output / "_run" / "staging" / "shard-00000001.parquet").write_bytes(b"PAR1 no more")
    assert caption(photos, "-o", output).exit_code == 0
    assert summary(output)["captioned"] == 4
    assert len(read_rows(output)) == 8


@pytest.mark.usefixtures("without_ray")
def test_an_interrupt_keeps_what_is_finished(tmp_path: Path, caption, monkeypatch) -> None:
    photos, output = write_photos(tmp_path / "photos", 16), tmp_path / "out"

    def interrupted(work: Work, pools: Pools, shards: Sequence[int]) -> Iterator[ShardResult]:
        yield from in_process(work, pools, shards[:2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        run_with(patch, interrupted)
        stopped = caption(photos, "-o", output, "--set", "output.shard_size=4")
    assert stopped.exit_code == 130
    assert "8 images of this run finished and kept. Give the same command again" in stopped.stderr
    assert len(staged(output)) == 2
    assert CliRunner().invoke(app, ["verify", str(output)]).exit_code == 1
    assert caption(photos, "-o", output).exit_code == 0
    assert summary(output).items() >= {"captioned": 8, "already_done": 8}.items()


@pytest.mark.usefixtures("without_ray")
def test_too_many_errors_end_with_1_and_all_rows(tmp_path: Path, caption) -> None:
    _, classes = write_odd_files(tmp_path / "odd")
    done = caption(tmp_path / "odd", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "errors.max_fraction=0.2" in done.stderr
    rows = read_rows(tmp_path / "out")
    assert {name for name, row in rows.items() if row["status"] == "error"} == set(classes)
    assert summary(tmp_path / "out")["error_classes"] == dict.fromkeys(sorted(classes.values()), 1)
    assert caption(tmp_path / "odd", "-o", tmp_path / "out", "--set", "errors.max_fraction=0.5").exit_code == 0


@pytest.mark.usefixtures("no_pipeline")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("gone", "-o", "out"), "does not exist"),
        (("empty", "-o", "out"), "contains no image"),
        (("photos", "-o", "out", "--set", "decoding.beem_size=3"), "Did you mean 'beam_size'"),
        (("photos", "-o", "out", "--set", "runtime.actors=many"), "runtime.actors"),
        (("photos", "-o", "out", "--set", "runtime.gpus_per_actor=1", "--set", "runtime.device=cpu"), "leave one"),
        (("photos", "-o", "out", "--set", "runtime.max_actors=8", "--set", "runtime.actors=2"), "max_actors is 8"),
        (("photos", "-o", "out", "--set", "runtime.max_actors=8", "--set", "runtime.device=cpu"), "asks a Ray cluster"),
        (("photos", "-o", "out", "--set", "runtime.cuda_graphs=true", "--set", "runtime.device=cpu"), "is for GPUs"),
        (("photos", "-o", "out", "--set", "decoding.num_captions=4"), "raise beam_size"),
        (("photos", "-o", "out", "--config", "gone.yaml"), "gone.yaml cannot be read"),
        (("photos", "-o", "out", "--model", "no-such-captioner"), "no-such-captioner"),
        (("photos", "-o", "file"), "is a file"),
        (("photos", "-o", "file/below"), "cannot be written to"),
        (("photos", "-o", "tables"), "is of no run"),
        (("photos",), "-o"),
        (("-o", "out"), "INPUT"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_message(tmp_path: Path, monkeypatch, tiny_captioner, arguments, says) -> None:
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "mine.parquet").write_bytes(b"")
    chosen = [] if "--model" in arguments else ["--model", str(tiny_captioner)]
    done = CliRunner().invoke(app, ["caption", *arguments, *chosen])
    assert done.exit_code == 2, (done.output, done.exception)
    assert says in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("without_ray")
def test_an_id_that_two_inputs_share_is_refused_and_leaves_nothing(tmp_path: Path, caption) -> None:
    write_photos(tmp_path / "a", 3)
    write_photos(tmp_path / "b", 3)
    done = caption(tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert done.exit_code == 2
    assert "is in both INPUTs" in done.stderr
    assert not (tmp_path / "out").exists()
    named = caption(f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "-o", tmp_path / "out")
    assert named.exit_code == 0, named.output
    assert sorted(read_rows(tmp_path / "out"))[:2] == ["a/0/0000.jpg", "a/0/0002.jpg"]


def layout_of(output: Path) -> RunLayout:
    return RunLayout(Location.parse(str(output)))


@pytest.mark.usefixtures("without_ray")
def test_a_second_driver_is_told_who_has_the_lock(tmp_path: Path, caption) -> None:
    photos, output = write_photos(tmp_path / "photos", 4), tmp_path / "out"
    with RunLock(layout_of(output), notify=print, command="caption, elsewhere"):
        refused = caption(photos, "-o", output)
        assert refused.exit_code == 1
        assert "Another driver is running in" in refused.stderr
        assert "caption, elsewhere" in refused.stderr
        assert not (output / "_run" / "run.json").exists()
        assert CliRunner().invoke(app, ["verify", str(output)]).exit_code == 2  # it reads, whoever holds: no run yet
    assert caption(photos, "-o", output).exit_code == 0
    assert lock_owner(layout_of(output)) is None


@pytest.mark.usefixtures("without_ray")
def test_a_driver_that_lost_its_lock_stops_and_finished_shards_are_kept(tmp_path: Path, caption, monkeypatch) -> None:
    photos, output = write_photos(tmp_path / "photos", 16), tmp_path / "out"
    other = replace(LockOwner.current("caption, the other one"), token="other")

    def lost(work: Work, pools: Pools, shards: Sequence[int]) -> Iterator[ShardResult]:
        for number, result in enumerate(in_process(work, pools, shards)):
            if number == 2:
                layout_of(output).lock_file.write_bytes(other.to_json())
                time.sleep(0.3)
            yield result

    with monkeypatch.context() as patch:
        run_with(patch, lost)
        patch.setattr("captioning.run.lock._HEARTBEAT", 0.02)
        stopped = caption(photos, "-o", output, "--set", "output.shard_size=4")
    assert stopped.exit_code == 1
    assert "Another driver has taken over" in stopped.stderr
    assert len(staged(output)) == 3
    assert lock_owner(layout_of(output)) == other
    layout_of(output).lock_file.delete()
    assert caption(photos, "-o", output).exit_code == 0
    assert summary(output).items() >= {"captioned": 4, "already_done": 12}.items()


@pytest.mark.usefixtures("without_ray")
def test_another_input_is_taken_only_with_add(tmp_path: Path, caption) -> None:
    first, second = write_photos(tmp_path / "first", 5), write_photos(tmp_path / "second", 3, first=50)
    output = tmp_path / "out"
    assert caption(first, "-o", output).exit_code == 0
    for inputs in ((first, second), (second,)):
        refused = caption(*inputs, "-o", output)
        assert refused.exit_code == 2
        assert "pass --add" in refused.stderr
    assert len(read_rows(output)) == 5
    added = caption(second, "-o", output, "--add")
    assert added.exit_code == 0, added.output
    assert summary(output).items() >= {"inputs": 8, "captioned": 3, "already_done": 5}.items()
    assert len(read_rows(output)) == 8
    assert caption(first, second, "-o", output).stdout.startswith("Nothing to do: of 8 images")
    assert "INPUT" in caption(first, "-o", output).stderr


@pytest.mark.usefixtures("without_ray")
def test_an_input_is_added_to_a_run_that_was_killed_at_once(tmp_path: Path, caption, monkeypatch) -> None:
    first, second = write_photos(tmp_path / "first", 5), write_photos(tmp_path / "second", 3, first=50)
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("captioning.run.index.PendingSegment.commit", interrupt)
        assert caption(first, "-o", output).exit_code == 130
    assert (output / "_run" / "run.json").exists()
    added = caption(second, "-o", output, "--add")
    assert added.exit_code == 0, added.output
    assert summary(output).items() >= {"inputs": 8, "captioned": 8, "already_done": 0}.items()
    assert caption(first, second, "-o", output).stdout.startswith("Nothing to do: of 8 images")


@pytest.mark.usefixtures("without_ray")
def test_notes_about_a_grown_archive_are_shown_once(tmp_path: Path, caption) -> None:
    photos, output = write_photos(tmp_path / "photos", 5), tmp_path / "out"
    (photos / "notes.pdf").write_bytes(b"")
    assert "Passed over 1 files" in caption(photos, "-o", output).stderr
    assert "Passed over" not in caption(photos, "-o", output).stderr
    (photos / "more.pdf").write_bytes(b"")
    assert "Passed over 2 files" in caption(photos, "-o", output).stderr
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = caption(empty, "-o", output, "--add")
    assert refused.exit_code == 2
    assert "contains no image" in refused.stderr
    assert caption(photos, "-o", output).stdout.startswith("Nothing to do: of 5 images")


@pytest.mark.usefixtures("without_ray")
def test_a_run_within_its_archive_never_captions_itself(tmp_path: Path, caption) -> None:
    photos = write_photos(tmp_path / "photos", 5)
    for _ in range(2):
        done = caption(photos, "-o", photos / "captions")
        assert done.exit_code == 0
        assert "Passed over" not in done.stderr
    kinds = json.loads((photos / "captions" / "_run" / "run.json").read_text())["kinds"]
    assert kinds == ["images"]


@pytest.mark.usefixtures("without_ray")
def test_an_image_is_counted_once_a_run(tmp_path: Path, caption, monkeypatch) -> None:
    """Changed while the run was stopped: it is captioned as it is, and not refreshed on top of that."""
    photos, output = write_photos(tmp_path / "photos", 6), tmp_path / "out"

    def interrupted(*_: object) -> Iterator[ShardResult]:
        raise KeyboardInterrupt
        yield

    with monkeypatch.context() as patch:
        run_with(patch, interrupted)
        assert caption(photos, "-o", output).exit_code == 130
    for photo in photos.rglob("*.*"):
        photo.write_bytes(encode(picture(77, (50, 20)), "JPEG"))
    assert caption(photos, "-o", output, "--refresh", "changed").exit_code == 0
    assert summary(output).items() >= {"inputs": 6, "captioned": 6, "already_done": 0}.items()


@pytest.mark.usefixtures("without_ray")
def test_refresh_captions_what_changed_and_nothing_else(tmp_path: Path, caption) -> None:
    photos, output = write_photos(tmp_path / "photos", 12), tmp_path / "out"
    assert caption(photos, "-o", output, "--set", "output.shard_size=4").exit_code == 0
    before = read_rows(output)
    changed, gone = sorted(before)[3], sorted(before)[7]
    (photos / changed).write_bytes(encode(picture(77, (50, 20)), "JPEG"))
    (photos / gone).unlink()
    left = caption(photos, "-o", output)
    assert left.exit_code == 0
    assert "1 images changed since they were captioned; their captions are kept (--refresh changed" in left.stderr
    assert read_rows(output) == before
    fresh = caption(photos, "-o", output, "--refresh", "changed")
    assert fresh.exit_code == 0, fresh.output
    assert "no longer in the archive; their rows are kept" in fresh.stderr
    after = read_rows(output)
    assert {name for name in after if after[name] != before[name]} == {changed}
    assert (after[changed]["width"], after[changed]["height"]) == (50, 20)
    assert summary(output).items() >= {"inputs": 12, "captioned": 1, "already_done": 11}.items()
    again = caption(photos, "-o", output, "--refresh", "changed")
    assert again.stdout.startswith("Nothing to do")
    assert "changed since" not in again.stderr
    assert caption(photos, "-o", output, "--refresh", "all").exit_code == 2


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    "step", ["captioning.run.index.write_file", "jobs.driving.caption_run.fold", "jobs.driving.driver.verify"]
)
def test_an_interrupt_anywhere_ends_cleanly(tmp_path: Path, caption, monkeypatch, step: str) -> None:
    photos, output = write_photos(tmp_path / "photos", 6), tmp_path / "out"

    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(step, interrupt)
        stopped = caption(photos, "-o", output)
    assert stopped.exit_code == 130
    assert "Give the same command again to go on." in stopped.stderr
    if step.endswith("write_file"):
        assert "Nothing was written yet." in stopped.stderr
        assert not output.exists()
    else:
        assert "6 images of this run finished and kept." in stopped.stderr
        assert lock_owner(layout_of(output)) is None
    assert caption(photos, "-o", output).exit_code == 0
    assert len(read_rows(output)) == 6
