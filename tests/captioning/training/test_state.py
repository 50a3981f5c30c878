"""Saved states: written while training goes on, loaded completely or not at all; and the ownership of OUTPUT."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet
from captioning.errors import CheckpointError, RunConflictError, StorageError, UsageError
from captioning.local_files import LocalFiles
from captioning.remote_files import RemoteFiles
from captioning.storage import Location
from captioning.training.best import BestCheckpoint
from captioning.training.loop import TrainingRun
from captioning.training.output import check_output, claim_output
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.state import Progress, StateWriter, newest_state, remove_leftovers
from tests.captioning.training.runs import assert_same, recipe, start, weights
from tests.tiny import tiny_tokenizer, write_tiny_shards


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 8, "val": 3})


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return Location.parse(str(tmp_path))


def tensors(value: float) -> dict[str, dict[str, Tensor]]:
    return {"model": {"a": torch.full((2, 3), value), "b": torch.tensor(value)}, "optimizer": {"0.step": torch.ones(1)}}


def save(writer: StateWriter, step: int, **progress: Any) -> None:
    writer.save(Progress(step=step, **progress), tensors(step))
    writer.wait()


def names(output: Location) -> list[str]:
    return (output / "state").names()


class TestWriting:
    def test_it_is_what_was_there_when_save_was_called(self, output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        go, write = threading.Event(), LocalFiles.write
        monkeypatch.setattr(LocalFiles, "write", lambda *args: (go.wait(60), write(*args)))
        writer = StateWriter(output, keep=2)
        progress, given = Progress(step=4, history=[{"step": 4}]), tensors(4)
        writer.save(progress, given)
        # Training goes on before anything is on disk.
        given["model"]["a"].zero_()
        given["model"]["b"] += 5
        progress.step = 5
        progress.history[0]["step"] = 5
        assert newest_state(output) is None
        go.set()
        writer.wait()
        state = newest_state(output)
        assert state is not None
        assert (state.progress.step, state.progress.history) == (4, [{"step": 4}])
        assert_same(state.tensors("model"), tensors(4)["model"])
        assert_same(state.tensors("optimizer"), tensors(4)["optimizer"])

    def test_tensors_come_back_whatever_their_memory_and_type(self, output: Location) -> None:
        images = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).float()
        shared = torch.ones(3)
        given = {
            "channels_last": images.to(memory_format=torch.channels_last),
            "transposed": torch.arange(6).reshape(2, 3).T,
            "half": torch.ones(2, dtype=torch.float16),
            "count": torch.tensor(7),
            "one": shared,
            "same": shared,
            "learned": torch.nn.Parameter(torch.ones(2)),
        }
        writer = StateWriter(output, keep=1)
        writer.save(Progress(step=1), {"model": given})
        writer.wait()
        state = newest_state(output)
        assert state is not None
        found = state.tensors("model")
        assert {name: (value.dtype, value.tolist()) for name, value in found.items()} == {
            name: (value.dtype, value.tolist()) for name, value in given.items()
        }

    @pytest.mark.parametrize("hears", ["wait", "save"])
    def test_an_error_in_the_thread_is_told(
        self, output: Location, monkeypatch: pytest.MonkeyPatch, hears: str
    ) -> None:
        def full(*_: object) -> None:
            raise StorageError("no_space", "The disk is full.")

        writer = StateWriter(output, keep=2)
        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "write", full)
            writer.save(Progress(step=1), tensors(1))
            with pytest.raises(StorageError, match="disk is full"):
                writer.wait() if hears == "wait" else writer.save(Progress(step=2), tensors(2))
        # Raised once; the next state is written.
        save(writer, 3)
        state = newest_state(output)
        assert state is not None
        assert state.progress.step == 3

    def test_a_run_ends_with_the_error_of_its_last_state(
        self, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = LocalFiles.write

        def full(files: LocalFiles, path: str, *rest: Any) -> None:
            if "/step-" in path:
                raise StorageError("no_space", "The disk is full.")
            write(files, path, *rest)

        monkeypatch.setattr(LocalFiles, "write", full)
        with pytest.raises(StorageError, match="disk is full"):
            start(recipe("epochs=1"), shards, tmp_path).run()
        assert not (tmp_path / "summary.json").exists()

    def test_states_are_written_one_at_a_time(self, output: Location, monkeypatch: pytest.MonkeyPatch) -> None:
        write = LocalFiles.write
        order: list[str] = []

        def slow(files: LocalFiles, path: str, *rest: Any) -> None:
            threading.Event().wait(0.02)
            order.append(Path(path).parent.name)
            write(files, path, *rest)

        monkeypatch.setattr(LocalFiles, "write", slow)
        writer = StateWriter(output, keep=3)
        for step in (1, 2, 3):
            writer.save(Progress(step=step), tensors(step))
        writer.wait()
        assert order == sorted(order)
        assert len(order) == 9


class TestLoading:
    def damage(self, folder: Path, how: str) -> None:
        file = folder / "model.safetensors"
        if how == "missing":
            file.unlink()
        elif how == "short":
            file.write_bytes(file.read_bytes()[:-1])
        elif how == "unmarked":
            (folder / "state.json").unlink()
        else:
            (folder / "optimizer.safetensors").rename(folder / ".0123456789abcdef.tmp")

    @pytest.mark.parametrize("how", ["missing", "short", "unmarked", "temporary"])
    def test_one_that_is_not_whole_is_passed_over(self, output: Location, how: str) -> None:
        writer = StateWriter(output, keep=3)
        for step in (1, 2, 3):
            save(writer, step)
        for at, expected in ((2, 2), (1, 1), (0, None)):
            self.damage(output.local_path / "state" / f"step-{at + 1:08d}-00", how)
            state = newest_state(output)
            assert (state and state.progress.step) == expected
            if state is not None:
                assert_same(state.tensors("model"), tensors(expected or 0)["model"])

    def test_one_that_is_whole_and_unreadable_is_named(self, output: Location) -> None:
        save(StateWriter(output, keep=1), 1)
        folder = output.local_path / "state" / "step-00000001-00"
        for name, data in (("model.safetensors", bytes((folder / "model.safetensors").stat().st_size)),):
            (folder / name).write_bytes(data)
        state = newest_state(output)
        assert state is not None
        with pytest.raises(UsageError, match="step-00000001-00 cannot be used.*Delete it"):
            state.tensors("model")
        (folder / "state.json").write_text("{}")
        with pytest.raises(UsageError, match="step-00000001-00 cannot be used.*Delete it"):
            newest_state(output)

    @pytest.mark.parametrize("stop", [3, 6, 9])
    def test_a_run_goes_on_from_the_state_before(self, shards: ShardSet, tmp_path: Path, stop: int) -> None:
        settings = recipe("images_per_step=2", "save_every_steps=2", "epochs=3")
        alone = start(settings, shards, tmp_path / "alone")
        alone.run()
        start(settings, shards, tmp_path / "stopped").run(stop_at=stop)
        states = sorted((tmp_path / "stopped" / "state").glob("step-*"))
        self.damage(states[-1], "short")
        again = start(settings, shards, tmp_path / "stopped")
        again.run()
        assert_same(weights(again), weights(alone))
        kept = sorted(path.name for path in (tmp_path / "stopped" / "state").iterdir())
        assert kept == sorted(path.name for path in (tmp_path / "alone" / "state").iterdir())


class TestKeeping:
    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_newest_stay(self, output: Location, keep: int) -> None:
        writer = StateWriter(output, keep=keep)
        for step in range(1, 6):
            save(writer, step, stage=step // 3)
        expected = [f"step-{step:08d}-{step // 3:02d}" for step in range(1, 6)]
        assert names(output) == expected[-keep:]

    @pytest.mark.parametrize("keep", [1, 2])
    def test_a_run_keeps_as_many_as_it_is_told(self, shards: ShardSet, tmp_path: Path, keep: int) -> None:
        start(recipe(f"keep_states={keep}", "save_every_steps=1"), shards, tmp_path).run()
        assert len(list((tmp_path / "state").glob("step-*"))) == keep

    def test_half_written_ones_and_those_that_could_not_be_used_go(self, output: Location) -> None:
        writer = StateWriter(output, keep=2)
        for step in (2, 4):
            save(writer, step)
        half = output.local_path / "state" / "step-00000003-00"
        half.mkdir()
        (half / "model.safetensors").write_bytes(b"half")
        (half / ".0123456789abcdef.tmp").write_bytes(b"less")
        # The newest is damaged and must not displace the complete ones.
        (output.local_path / "state" / "step-00000004-00" / "model.safetensors").write_bytes(b"short")
        save(writer, 3)
        assert names(output) == ["step-00000002-00", "step-00000003-00"]
        state = newest_state(output)
        assert state is not None
        assert_same(state.tensors("model"), tensors(3)["model"])

    def test_one_can_always_be_loaded_though_only_one_is_kept(
        self, output: Location, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A step is saved before and after its validation: the first state must stay until the second is complete."""
        write, delete = LocalFiles.write, LocalFiles.delete
        found: list[int | None] = []

        def look(then: Callable[..., None]) -> Callable[..., None]:
            def looked(*args: Any) -> None:
                then(*args)
                state = newest_state(output)
                found.append(state and state.progress.step)

            return looked

        writer = StateWriter(output, keep=1)
        save(writer, 1)
        monkeypatch.setattr(LocalFiles, "write", look(write))
        monkeypatch.setattr(LocalFiles, "delete", look(delete))
        save(writer, 2)
        save(writer, 2, validated_step=2)
        save(writer, 3)
        assert found == sorted(found, key=lambda step: step or 0)
        assert found[0] == 1
        assert found[-1] == 3

    def test_the_temporary_files_of_a_killed_run_go(self, output: Location) -> None:
        save(StateWriter(output, keep=1), 1)
        stray = output.local_path / "state" / ".0123456789abcdef.tmp"
        stray.write_bytes(b"x")
        remove_leftovers(output)
        assert names(output) == ["step-00000001-00"]


class TestWhose:
    def test_the_same_settings_go_on_and_others_are_refused(self, shards: ShardSet, tmp_path: Path) -> None:
        output = Location.parse(str(tmp_path / "run"))
        claim_output(output, recipe(), shards, tiny_tokenizer())
        check_output(output, recipe(), shards)
        # How it goes, not what it makes.
        check_output(
            output, recipe("log_every_steps=7", "keep_states=5", "threads_per_worker=2", "data=elsewhere"), shards
        )
        for change, said in (
            ("optim.lr=0.5", r"settings.optim.lr: 0.01 → 0.5"),
            ("seed=2", "seed: 1 → 2"),
            ("feature_cache=auto", "feature_cache: false → true"),
            ("stages=[{epochs: 2}]", "stages"),
        ):
            with pytest.raises(RunConflictError, match=said):
                check_output(output, recipe(change), shards)
        other = write_tiny_shards(tmp_path / "other", {"train": 9, "val": 3})
        with pytest.raises(RunConflictError, match="data"):
            check_output(output, recipe(), other)

    def test_where_features_are_kept_is_free_in_a_stage_too(self, shards: ShardSet, tmp_path: Path) -> None:
        def settings(place: str) -> Any:
            return recipe(f"stages=[{{feature_cache: {place}, log_every_steps: 3}}, {{epochs: 1}}]")

        output = Location.parse(str(tmp_path / "run"))
        claim_output(output, settings("auto"), shards, tiny_tokenizer())
        check_output(output, settings("/elsewhere"), shards)
        with pytest.raises(RunConflictError, match="feature_cache"):
            check_output(output, settings("null"), shards)

    def test_what_a_kill_has_left_does_not_make_it_anothers(self, shards: ShardSet, tmp_path: Path) -> None:
        """Killed while claiming OUTPUT: first there is only a temporary file, then no tokenizer."""
        (tmp_path / ".0123456789abcdef.tmp").write_bytes(b"{")
        output = Location.parse(str(tmp_path))
        check_output(output, recipe(), shards)
        claim_output(output, recipe(), shards, tiny_tokenizer())
        (tmp_path / "tokenizer" / "complete").unlink()
        claim_output(output, recipe(), shards, tiny_tokenizer())
        assert (tmp_path / "tokenizer" / "complete").exists()
        (tmp_path / "train.json").unlink()
        with pytest.raises(RunConflictError, match="not empty"):
            check_output(output, recipe(), shards)


@contextmanager
def killing(monkeypatch: pytest.MonkeyPatch, at: int, place: str) -> Iterator[list[int]]:
    """A context in which operation number `at` on files below `place` is not executed and raises."""
    count = [0]

    def counted(then: Callable[..., Any], path_at: int) -> Callable[..., Any]:
        def operation(*args: Any, **more: Any) -> Any:
            if place in str(args[path_at]):
                count[0] += 1
                if count[0] == at:
                    raise Killed
            return then(*args, **more)

        return operation

    with monkeypatch.context() as patch:
        for files in (LocalFiles, RemoteFiles):
            for name in ("write", "delete"):
                patch.setattr(files, name, counted(getattr(files, name), 1))
        for name in ("rename", "replace"):
            patch.setattr(f"os.{name}", counted(getattr(__import__("os"), name), 0))
        patch.setattr("shutil.rmtree", counted(__import__("shutil").rmtree, 0))
        yield count


class TestBest:
    """Each file operation is interrupted once while a better checkpoint replaces another."""

    @pytest.mark.parametrize("remote", [False, True], ids=["local", "objects"])
    def test_it_is_one_checkpoint_or_none(
        self, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, remote: bool
    ) -> None:
        at, struck = 0, True
        while struck:
            at += 1
            output = Location.parse(f"memory://best-{at}/run" if remote else str(tmp_path / f"{at}" / "run"))
            run = self.prepared(shards, output)
            self.write(run, output, 1)
            struck = False
            with killing(monkeypatch, at, "best"):
                try:
                    self.write(run, output, 2)
                except Killed:
                    struck = True
            found = self.found(output, tmp_path / f"found-{at}")
            assert found in ((None, 1, 2) if struck else (2,))
            again = BestCheckpoint(run.settings, shards, output, self.parts(run))
            whole = again.recover()
            after = self.found(output, tmp_path / f"settled-{at}")
            assert whole == (after is not None)
            # Locally nothing is lost, whatever is cut; objects are written again by the validation that is due again.
            assert after in ((None, 1, 2) if remote else (1, 2))
            self.write(run, output, 2)
            assert self.found(output, tmp_path / f"written-{at}") == 2
            if not remote:
                assert sorted(path.name for path in output.local_path.iterdir()) == ["best"]
        assert at > 4
        fsspec.filesystem("memory").store.clear()

    def test_a_validation_after_a_half_written_one_writes_it_though_its_score_is_no_better(
        self, shards: ShardSet, tmp_path: Path
    ) -> None:
        settings = recipe("images_per_step=2", "epochs=2", "save_every_steps=1")
        start(settings, shards, tmp_path).run(stop_at=5)
        (tmp_path / "best" / "config.json").unlink()
        state = newest_state(Location.parse(str(tmp_path)))
        assert state is not None
        assert state.progress.best_score is not None
        marker = state.folder.local_path / "state.json"
        marker.write_text(
            json.dumps(json.loads(marker.read_text()) | {"progress": vars(state.progress) | {"best_score": 1e9}})
        )
        run = start(settings, shards, tmp_path)
        run.run()
        assert run.progress.best_step == 8
        assert load_captioner(str(tmp_path / "best"))

    @staticmethod
    def parts(run: TrainingRun) -> Any:
        return make_parts(run.settings, make_tokenizer(run.settings, run.shards))

    def prepared(self, shards: ShardSet, output: Location) -> TrainingRun:
        settings = recipe("epochs=1")
        return TrainingRun(settings, make_parts(settings, make_tokenizer(settings, shards)), shards, output)

    def write(self, run: TrainingRun, output: Location, step: int) -> None:
        """A checkpoint whose weights and config both contain the step."""
        stage = run.__dict__.setdefault("_stage", None) or run.start_stage(None)
        run.__dict__["_stage"] = stage
        with torch.no_grad():
            run.model.bias.fill_(step)  # type: ignore[operator]
        best = BestCheckpoint(run.settings, run.shards, output, self.parts(run))
        best.write(stage, stage.weights(), Progress(step=step), {"cider_d": 1.0}, [])

    def found(self, output: Location, folder: Path) -> int | None:
        """The step of the checkpoint; None if there is none. Fails if it is a mixture of two."""
        if not (output / "best").exists():
            return None
        folder.mkdir()
        (output / "best").download(folder)
        try:
            load_captioner(str(folder))
        except CheckpointError:
            return None
        step = int(load_file(folder / "model.safetensors")["bias"][0])
        assert json.loads((folder / "config.json").read_text())["provenance"]["step"] == step
        return step


def test_stray_temporary_files_do_no_harm(shards: ShardSet, tmp_path: Path) -> None:
    settings = recipe("images_per_step=2", "save_every_steps=1", "epochs=2")
    alone = start(settings, shards, tmp_path / "alone")
    alone.run()
    place = tmp_path / "run"
    start(settings, shards, place).run(stop_at=5)
    folders = [place, place / "state", place / "best", next((place / "state").glob("step-*"))]
    for folder in folders:
        (folder / ".0123456789abcdef.tmp").write_bytes(b"half of something")
    assert load_captioner(str(place / "best"))
    again = start(settings, shards, place)
    again.run()
    assert_same(weights(again), weights(alone))
    assert not list((place / "state").rglob("*.tmp"))
