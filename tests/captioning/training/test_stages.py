"""Stages: initial weights, settings, the best checkpoint, and resuming in any of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet
from captioning.errors import SettingsError
from captioning.local_files import LocalFiles
from captioning.models.checkpoint import load_model
from captioning.models.checkpoint_config import read_config
from captioning.training.loop import TrainingRun
from captioning.training.optim import schedule_factor
from jobs.training.progress import describe_record
from tests.captioning.training.runs import (
    CLIP_STAGES,
    LSTM_STAGES,
    RECIPE,
    assert_same,
    best_of_stage,
    recipe,
    run_with_scores,
    start,
    weights,
)
from tests.tiny import save_tiny_captioner, tiny_tokenizer, write_tiny_shards

TWO_CAPTIONING = (
    RECIPE
    + """
validation: {patience: 2}
stages:
  - {name: one}
  - {name: two, tune: {encoder: {tune_from: null}, dropout: 0.4}, optim: {lr: 0.005, warmup_steps: 1}, epochs: 2}
"""
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 18, "val": 5})


class TestOneAfterTheOther:
    @pytest.fixture(scope="class")
    def run(self, shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Any:
        """The best validation is in the middle of the first stage, and no stage ends with its best."""
        marks = {5: 1.0, 10: 3.0, 15: 2.0, 20: 2.9, 25: 0.5}
        folder = tmp_path_factory.mktemp("run")
        run = run_with_scores(recipe("log_every_steps=1", text=TWO_CAPTIONING), shards, folder, marks)
        run.folder = folder
        return run

    def test_a_stage_begins_with_the_best_weights_of_the_one_before(self, run: Any) -> None:
        assert_same(run.at_start[1], run.validated[10])
        assert_same(best_of_stage(run.folder, 0), run.validated[10])
        assert any(not value.equal(run.validated[15][name]) for name, value in run.at_start[1].items())

    def test_what_a_stage_freezes_stays_and_what_it_tunes_learns(self, run: Any) -> None:
        assert encoder_changed(run.at_start[0], run.validated[5])
        assert not encoder_changed(run.at_start[1], run.validated[20])
        assert not run.validated[20]["lstm.weight_hh_l0"].equal(run.at_start[1]["lstm.weight_hh_l0"])
        assert run.model.settings.dropout == 0.4
        assert run.model.settings.encoder.tune_from is None

    def test_each_schedule_begins_anew(self, run: Any) -> None:
        one, two = run.settings.stage_settings()
        found = [(r["stage"], r["lr"]) for r in run.progress.history if r["kind"] == "step"]
        expected = [("one", 0.01 * schedule_factor(one.optim, step, 15)) for step in range(15)]
        expected += [("two", 0.005 * schedule_factor(two.optim, step, 10)) for step in range(10)]
        assert found == [(name, pytest.approx(rate)) for name, rate in expected]

    def test_the_best_of_all_stages_that_make_captions_is_kept(self, run: Any) -> None:
        about = read_config(run.folder / "best")
        assert (about.provenance["stage"], about.provenance["step"]) == ("one", 10)
        kept = load_model(run.folder / "best", about, tiny_tokenizer()).state_dict()
        assert_same(kept, run.validated[10])
        summary = json.loads((run.folder / "summary.json").read_text())
        assert (summary["best_score"], summary["best_step"]) == (3.0, 10)


def encoder_changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> bool:
    return any(not value.equal(before[name]) for name, value in after.items() if name.startswith("encoder."))


def test_a_later_stage_that_is_better_takes_the_place(shards: ShardSet, tmp_path: Path) -> None:
    run = run_with_scores(recipe(text=TWO_CAPTIONING), shards, tmp_path, {5: 1.0, 10: 0.0, 15: 0.0, 20: 1.5, 25: 0.5})
    about = read_config(tmp_path / "best")
    assert (about.provenance["stage"], about.provenance["step"]) == ("two", 20)
    assert about.architecture.encoder.tune_from is None
    assert_same(load_model(tmp_path / "best", about, tiny_tokenizer()).state_dict(), run.validated[20])


def test_patience_ends_a_stage_and_not_the_run(shards: ShardSet, tmp_path: Path) -> None:
    """The first stage stops after three of four epochs, and patience starts afresh in the next."""
    run = run_with_scores(recipe("epochs=4", text=TWO_CAPTIONING), shards, tmp_path, {5: 3, 10: 2, 15: 1, 20: 1, 25: 2})
    assert sorted(run.validated) == [5, 10, 15, 20, 25]
    assert run.progress.stopped_early


def test_early_stopping_is_told_and_which_validation_was_the_best(shards: ShardSet, tmp_path: Path) -> None:
    run = run_with_scores(recipe("epochs=4", text=TWO_CAPTIONING), shards, tmp_path, {5: 3, 10: 2, 15: 1, 20: 1, 25: 2})
    [told] = [r["message"] for r in run.progress.history if r["kind"] == "note"]
    assert told.startswith("one: stopped early, 5 steps before its end. ")
    assert "2 times in a row (validation.patience); its best was at step 5." in told
    told_of = {r["step"]: describe_record(r) for r in run.progress.history if r["kind"] == "validation"}
    marks = {step: line.rpartition("  (")[2] for step, line in told_of.items() if "  (best" in line}
    assert marks == {5: "best so far)", 20: "best of this stage)", 25: "best of this stage)"}


def test_patience_begins_when_something_right_is_said(shards: ShardSet, tmp_path: Path) -> None:
    """New words take a while to appear in captions; until then the latest weights are kept."""
    run = run_with_scores(
        recipe("epochs=4", text=TWO_CAPTIONING), shards, tmp_path, {5: 0, 10: 0, 15: 0, 20: 0, 25: 0, 30: 0}
    )
    assert sorted(run.validated) == [5, 10, 15, 20, 25, 30]
    assert not run.progress.stopped_early
    assert run.progress.best_step == 30


@pytest.mark.parametrize("tune", [{}, {"encoder": {"tune_from": "all"}, "dropout": 0.4}])
def test_tune_is_laid_over_the_settings_of_a_checkpoint_too(
    shards: ShardSet, tmp_path: Path, tune: dict[str, Any]
) -> None:
    save_tiny_captioner(tmp_path / "start")
    override = [f"tune={json.dumps(tune)}"] if tune else []
    run = start(recipe(f"init={tmp_path / 'start'}", "epochs=1", *override), shards, tmp_path / "run")
    stage = run.start_stage(None)
    first = load_model(tmp_path / "start", read_config(tmp_path / "start"), tiny_tokenizer())
    assert_same(weights(run), first.state_dict())
    learning = any(p.requires_grad for name, p in stage.model.named_parameters() if name.startswith("encoder."))
    assert learning == bool(tune)
    assert stage.model.settings.dropout == (0.4 if tune else 0.0)
    run.run()
    assert encoder_changed(dict(first.state_dict()), weights(run)) == bool(tune)


@pytest.mark.parametrize("key", ["model", "init", "workers", "seed", "save_dtype", "tokenizer", "stages", "search"])
def test_what_belongs_to_the_run_is_no_stages_to_set(key: str) -> None:
    with pytest.raises(SettingsError, match=f"stage 2 sets {key}, which can only be set for the whole run"):
        recipe(f"stages=[{{epochs: 1}}, {{{key}: null}}]")


def test_a_key_that_no_stage_has_is_named() -> None:
    with pytest.raises(SettingsError, match=r"stage 1 .*unknown key 'epoch'.*Did you mean 'epochs'"):
        recipe("stages=[{epoch: 1}]")


@pytest.mark.parametrize("tune", ["hidden_size: 32", "attention: false", "encoder: {name: timm/test_resnet}"])
def test_tune_makes_no_other_model(shards: ShardSet, tmp_path: Path, tune: str) -> None:
    with pytest.raises(SettingsError, match="tune of stage 'late'.*changes the model"):
        start(recipe(f"stages=[{{epochs: 1}}, {{name: late, tune: {{{tune}}}}}]"), shards, tmp_path)
    assert not any(tmp_path.iterdir())


def test_an_objective_that_the_model_cannot_have_is_refused_before_the_first_stage(
    shards: ShardSet, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match="no image embedding"):
        start(recipe("stages=[{epochs: 1}, {objective: contrastive}]"), shards, tmp_path)


class TestBeforeThereAreCaptions:
    def test_pretraining_leaves_no_best_checkpoint_where_captions_follow(
        self, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        start_stage = TrainingRun.start_stage
        monkeypatch.setattr(
            TrainingRun,
            "start_stage",
            lambda run, given: [seen.append((tmp_path / "best").exists()), start_stage(run, given)][1],
        )
        steps = start(recipe(text=CLIP_STAGES), shards, tmp_path).total_steps
        marks = dict.fromkeys(range(steps + 1), 9.0) | {steps - 5: 0.5, steps: 0.25}
        run_with_scores(recipe(text=CLIP_STAGES), shards, tmp_path, marks)
        assert seen == [False, False, False, True]
        assert read_config(tmp_path / "best").provenance["stage"] == "mapper"

    def test_a_run_of_pretraining_alone_leaves_what_its_last_stage_made(self, shards: ShardSet, tmp_path: Path) -> None:
        settings = recipe(text=CLIP_STAGES[: CLIP_STAGES.index("  - {name: mapper")])
        run = start(settings, shards, tmp_path)
        run.run()
        assert read_config(tmp_path / "best").provenance["stage"] == "language"
        assert_same(load_captioner(str(tmp_path / "best")).model.state_dict(), best_of_stage(tmp_path, 1))


class TestResume:
    @pytest.mark.parametrize("text", [LSTM_STAGES, CLIP_STAGES], ids=["lstm", "clip"])
    def test_a_run_stopped_in_every_stage_ends_as_one_left_alone(
        self, shards: ShardSet, tmp_path: Path, text: str
    ) -> None:
        """Stopped every few steps: within epochs, between states, and between stages."""
        settings = recipe(text=text)
        alone = start(settings, shards, tmp_path / "alone")
        alone.run()
        assert alone.progress.stage == len(settings.stages) - 1
        stage_ends = [r["step"] for r in alone.progress.history if r["kind"] == "validation"]
        for stop in sorted({*range(2, alone.total_steps, 3), *stage_ends}):
            start(settings, shards, tmp_path / "stopped").run(stop_at=stop)
        again = start(settings, shards, tmp_path / "stopped")
        again.run()
        for stage in range(len(settings.stages)):
            assert_same(best_of_stage(tmp_path / "stopped", stage), best_of_stage(tmp_path / "alone", stage))
        assert_same(weights(again), weights(alone))
        assert figures(again) == figures(alone)
        # Features of other weights would have another cache key.
        caches = [sorted(f.name for f in (tmp_path / name / "features").iterdir()) for name in ("alone", "stopped")]
        assert caches[0] == caches[1]

    def test_weights_of_the_stage_find_the_kept_features(self, shards: ShardSet, tmp_path: Path) -> None:
        """For a frozen encoder that an earlier stage tuned, cached features of the untuned one must not be used."""
        settings = recipe(text=LSTM_STAGES)
        start(settings, shards, tmp_path).run(stop_at=8)
        before = sorted((tmp_path / "features").iterdir())
        start(settings, shards, tmp_path).run(stop_at=9)
        assert sorted((tmp_path / "features").iterdir()) == before


def figures(run: TrainingRun) -> list[Any]:
    """The records without times, rates and notes."""
    keys = ("kind", "step", "stage", "epoch", "images_seen", "best", "samples", "lr")
    records = [r for r in run.progress.history if r["kind"] != "note"]
    return [[record.get(key) for key in keys] for record in records]


class Killed(BaseException):
    pass


class TestSearch:
    SEARCH = ("search={beam_sizes: [1, 2], repetition_penalties: [1.0], no_repeat_ngram_sizes: [0, 2]}", "epochs=1")

    @pytest.fixture
    def searches(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        from captioning.training import loop

        made: list[int] = []
        search = loop.search_decoding
        monkeypatch.setattr(loop, "search_decoding", lambda *args, **more: [made.append(1), search(*args, **more)][1])
        return made

    def test_the_chosen_decoding_is_written_once(self, shards: ShardSet, tmp_path: Path, searches: list[int]) -> None:
        run = start(recipe(*self.SEARCH), shards, tmp_path)
        run.run()
        about, card = read_config(tmp_path / "best"), (tmp_path / "best" / "README.md").read_text()
        rows = about.provenance["decoding_search"]
        assert len(rows) >= 4
        assert about.decoding.beam_size == rows[0]["decoding"]["beam_size"]
        assert card.count("**Decoding**, chosen") == 1
        assert card.count("\n| 1 |") + card.count("\n| 2 |") == len(rows)
        assert load_captioner(str(tmp_path / "best")).decoding == about.decoding
        assert len(searches) == 1

    @pytest.mark.parametrize("killed_at", ["best/README.md", "best/config.json", "summary.json"])
    def test_a_kill_while_it_is_written_is_made_good(
        self,
        shards: ShardSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        searches: list[int],
        killed_at: str,
    ) -> None:
        start(recipe(*self.SEARCH), shards, tmp_path / "alone" / "run").run()
        expected = tmp_path / "alone" / "run" / "best"
        write, place = LocalFiles.write, tmp_path / "killed" / "run"

        def killed(files: LocalFiles, path: str, data: bytes, temp: str | None) -> None:
            if path == str(place / killed_at):
                raise Killed
            write(files, path, data, temp)

        run = start(recipe(*self.SEARCH), shards, place)
        with monkeypatch.context() as patch:
            patch.setattr(LocalFiles, "write", killed)
            with pytest.raises(Killed):
                run.run()
        assert load_captioner(str(place / "best"))
        start(recipe(*self.SEARCH), shards, place).run()
        # Once everything is written, the search is not repeated.
        assert len(searches) == (2 if killed_at == "summary.json" else 3)
        for name in ("config.json", "model.safetensors", "README.md"):
            assert (place / "best" / name).read_bytes() == (expected / name).read_bytes()
        assert (place / "summary.json").exists()


@pytest.mark.parametrize("override", ["encoder=late", "tune={dropout: 0.1}", "seed=1"])
def test_what_starts_random_learns_as_such_however_it_is_tuned(shards: ShardSet, tmp_path: Path, override: str) -> None:
    run = start(recipe("stages=[]", override, text=CLIP_STAGES), shards, tmp_path)
    rates = {group["peak_lr"] for group in run.start_stage(None).optimizer.param_groups}
    assert rates == {0.01}


def test_what_an_earlier_stage_has_taught_is_no_longer_random(shards: ShardSet, tmp_path: Path) -> None:
    maker = start(recipe(text=CLIP_STAGES), shards, tmp_path)._builder
    assert [maker.build_model(number, None).pretrained_prefixes for number in range(4)] == [
        (),
        ("clip.encoder.",),
        ("clip.encoder.", "gpt2."),
        ("clip.encoder.", "gpt2."),
    ]


def test_a_stage_that_samples_more_than_there_is_room_for_is_refused_at_once(shards: ShardSet, tmp_path: Path) -> None:
    stages = "stages=[{name: first}, {name: reward, objective: self_critical, self_critical: {max_new_tokens: 50}}]"
    with pytest.raises(SettingsError, match="self_critical.max_new_tokens is 50"):
        start(recipe(stages, text=CLIP_STAGES), shards, tmp_path)


def test_a_language_model_is_judged_within_the_room_that_it_has(shards: ShardSet, tmp_path: Path) -> None:
    language = "stages=[{name: language, objective: language_model, epochs: 1, tune: {train: gpt2}}]"
    small = "model.gpt2={n_embd: 16, n_layer: 1, n_head: 2, n_positions: 12}"
    run = start(
        recipe(language, small, "max_tokens=40", "decoding.max_new_tokens=6", text=CLIP_STAGES), shards, tmp_path
    )
    objective = run.start_stage(None).objective
    assert objective._max_tokens == run.model.max_positions()
