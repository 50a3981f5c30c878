"""A training run: its stages one after the other, validated, saved, and gone on with.

Runs in each worker. Knows torch.distributed through `Workers`, and never Ray. What a step does is
`stage.py`'s; where a run stands on disk is `state.py`'s.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.best import BestWriter
from captioning.training.decoding_search import search_decoding
from captioning.training.figures import History, Report, StepFacts, Window, check_board
from captioning.training.fsdp import whole
from captioning.training.make_stage import StageMaker
from captioning.training.optim import swapped
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.state import (
    Progress,
    State,
    StateWriter,
    load_weights,
    newest_state,
    remove_leftovers,
    save_weights,
)
from captioning.training.validation import describe, score
from captioning.training.workers import Workers

SUMMARY = "summary.json"


class TrainingRun:
    """A captioner in training, in one of the workers."""

    def __init__(
        self,
        settings: TrainSettings,
        parts: Parts,
        shards: ShardSet,
        output: Location,
        workers: Workers | None = None,
        report: Report | None = None,
        notes: Sequence[str] = (),
        leaving: Callable[[], bool] | None = None,
    ) -> None:
        """`notes` are lines for people that the history of a new run begins with.

        `leaving` tells, asked by all workers at once, whether some will soon be no more: then all is saved.
        """
        self.settings = settings
        self.stages = settings.in_stages()
        self.workers = workers or Workers()
        self.shards = shards
        self.output = output
        self.tokenizer = parts.tokenizer
        self.preprocess = parts.preprocess
        self.decoding = parts.decoding
        self.progress = Progress()
        self._report = report
        self._history = self._new_history()
        self._notes = notes
        self._leaving = leaving
        self._window = Window()
        self._make = StageMaker(settings, parts, shards, output, self.workers)
        self._states = StateWriter(output, keep=settings.keep_states)
        self._best = BestWriter(settings, shards, output, parts)
        self.model = parts.model
        self.total_steps = sum(map(self._make.steps, self.stages))
        if settings.tensorboard:
            check_board(output)
        # Decoding that the model has no room for, or a stage that it cannot go through, is refused now.
        self.captioner()
        for number in range(len(self.stages)):
            self._make.check(number)

    def run(self, stop_at: int | None = None) -> Progress:
        """Train to the end, from the newest saved state if there is one; `stop_at` a step, for tests.

        Raises `DivergedError`, and `InputError` for data that cannot be read.
        """
        state = self.workers.once(self._saved)
        self.progress = Progress() if state is None else state.progress
        self._history = self._new_history()
        if state is not None and self.workers.rank == 0:
            # What was recorded behind the state will be done again.
            self._history.write()
        notes = [*self._notes]
        if self.settings.fsdp and self.workers.world == 1:
            notes.append("fsdp: there is one worker, which has all of the model")
        for note in notes if not self.progress.history else ():
            self._tell(note)
        self._window = Window()
        stage = self.enter(None if state is None else state.tensors("model"))
        if state is not None:
            stage.restore(state)
        while True:
            self._train(stage, stop_at)
            if stop_at is not None and self.progress.step >= stop_at:
                self._states.wait()
                return self.progress
            if stage.number + 1 == len(self.stages):
                break
            self.progress.next_stage()
            stage = self.enter(self._best_weights(stage.number))
        self._finish()
        return self.progress

    def captioner(self) -> Captioner:
        """The model as it stands, as a captioner that decodes as in validation."""
        settings = self.stages[self.progress.stage]
        decoding, beams = self.decoding, settings.validation.beam_size
        if beams is not None:
            decoding = dataclasses.replace(decoding, beam_size=beams, num_captions=1)
        return Captioner(self.model, self.tokenizer, self.preprocess, decoding, precision=settings.precision)

    def enter(self, weights: Mapping[str, Tensor] | None) -> Stage:
        """The present stage, at its beginning, with the `weights` of the one before (None: those of the parts)."""
        stage = self._make.stage(self.progress.stage, weights, tell=self._tell)
        self.model = stage.model
        self._window.rest()
        return stage

    def _new_history(self) -> History:
        """Where what happens from here on is recorded, behind what `progress` has of it."""
        records, tensorboard = self.progress.history, self.settings.tensorboard
        return History(self.output, records, report=self._report, tensorboard=tensorboard)

    def _saved(self) -> State | None:
        """The state to go on from, what a kill has left half done put right."""
        remove_leftovers(self.output)
        complete = self._best.settle()
        state = newest_state(self.output)
        if state is not None and not complete:
            # It was being replaced by a better one, which will be written again: then nothing may stand in its way.
            state.progress.best_score = state.progress.best_step = None
        return state

    def _best_weights(self, stage: int) -> dict[str, Tensor]:
        # Until here only rank 0 is sure that they are written.
        self.workers.gather(True)
        return load_weights(self.output, _best_name(stage))

    def _train(self, stage: Stage, stop_at: int | None) -> None:
        """Go through the rest of a stage."""
        progress = self.progress
        while progress.epoch < stage.settings.epochs and not progress.stage_ended:
            for passes in stage.epoch(progress.epoch, start=progress.epoch_step):
                if stop_at is not None and progress.step >= stop_at:
                    return
                self._window.waited()
                facts = stage.step(passes, progress.stage_step)
                if self._after_step(stage, facts):
                    break
            else:
                progress.epoch += 1
                progress.epoch_step = 0
                self._validate_if_due(stage, end_of_epoch=True)
        progress.stage_ended = True

    def _after_step(self, stage: Stage, facts: StepFacts) -> bool:
        """Count, record, validate and save as is due; whether to stop early."""
        progress, settings = self.progress, stage.settings
        progress.step += 1
        progress.stage_step += 1
        progress.epoch_step += 1
        progress.images_seen += facts.images
        self._window.stepped(facts)
        leaving = False
        if progress.step % settings.log_every_steps == 0 or progress.stage_step == stage.total_steps:
            leaving = self._leaving is not None and self._leaving()
            self._record(stage, "step", lr=stage.optimizer.param_groups[-1]["lr"], **self._window.close(self.workers))
        every = settings.validation.every_steps
        if every and progress.stage_step % every == 0:
            self._validate_if_due(stage)
        elif leaving or progress.step % settings.save_every_steps == 0:
            self._save_state(stage)
        return progress.stage_ended

    def _validate_if_due(self, stage: Stage, *, end_of_epoch: bool = False) -> None:
        every = stage.settings.validation.every_steps
        at_end = self.progress.stage_step >= stage.total_steps
        if self.progress.validated_step != self.progress.step and (every is None or not end_of_epoch or at_end):
            self.validate(stage)
            self._save_state(stage)

    def validate(self, stage: Stage) -> float:
        """Judge the model, keep the best weights, and say whether the stage is to end; the score."""
        settings, progress = stage.settings.validation, self.progress
        with swapped(stage.model, stage.judged_weights()):
            figures, samples = self._judge(stage)
            mark = figures["cider_d"] if stage.objective.judged_by_captions else figures["score"]
            better = _is_better(mark, progress.stage_best_score)
            best = self._counts(stage) and _is_better(mark, progress.best_score)
            if better:
                progress.stage_best_score, progress.stage_best_step = mark, progress.step
                progress.validations_since_best = 0
            else:
                progress.validations_since_best += 1
            if best:
                progress.best_score, progress.best_step = mark, progress.step
            weights = stage.weights() if better or best else {}
            if self.workers.rank == 0:
                if better:
                    save_weights(self.output, _best_name(stage.number), weights)
                if best:
                    self._best.write(stage, weights, progress, figures, samples)
        stage.model.train()
        progress.validated_step = progress.step
        patience = settings.patience
        ended = patience is not None and progress.validations_since_best >= patience
        if ended:
            progress.stage_ended = progress.stopped_early = True
        self._record(
            stage,
            "validation",
            **figures,
            best=best,
            best_of_stage=better,
            samples=[list(sample) for sample in samples],
        )
        if ended and progress.stage_step < stage.total_steps:
            self._tell(
                f"{stage.settings.name}: stopped early, {stage.total_steps - progress.stage_step:,} steps before its "
                f"end. Validation got no better {patience} times in a row (validation.patience); its best was at step "
                f"{progress.stage_best_step:,}."
            )
        self._window.rest()
        return mark

    def _judge(self, stage: Stage) -> tuple[dict[str, float], list[tuple[str, str]]]:
        """The figures of the validation split, and samples of captions where there are any."""
        settings = stage.settings.validation
        with whole(stage.model):
            if not stage.objective.judged_by_captions:
                with stage.autocast():
                    return stage.objective.validate(stage.model, self.shards, self.workers), []
            described = describe(
                self.captioner(), self.shards, settings.split, workers=self.workers, images=settings.images
            )
        figures = self.workers.broadcast(score(described).summary() if self.workers.rank == 0 else None)
        return figures, [(d.key, d.caption.text) for d in described[: settings.samples]]

    def _counts(self, stage: Stage) -> bool:
        """Whether the stage makes captioners, or the run makes none and this is its last stage."""
        makes = [self._make.makes_captions(number) for number in range(len(self.stages))]
        return makes[stage.number] or (not any(makes) and stage.number + 1 == len(self.stages))

    def _save_state(self, stage: Stage) -> None:
        self.progress.seconds += self._window.lap()
        tensors = stage.tensors()
        if self.workers.rank == 0:
            self._states.save(self.progress, tensors)
        self._window.rest()

    def _finish(self) -> None:
        self._states.wait()
        self.workers.gather(True)
        if self.settings.search is not None:
            self._search(self.settings)
        if self.workers.rank == 0:
            progress = dataclasses.asdict(self.progress)
            del progress["history"]
            (self.output / SUMMARY).write_text(json.dumps({**progress, "finished": True}, indent=2) + "\n")
            self._history.write()

    def _search(self, settings: TrainSettings) -> None:
        """Choose the best checkpoint's decoding on the validation split."""
        assert settings.search is not None
        if self.workers.once(self._best.has_chosen_decoding):
            return
        captioner = self._best.load(self.workers.device, settings.precision)
        found = search_decoding(captioner, self.shards, settings.validation.split, settings.search, self.workers)
        if self.workers.rank == 0:
            self._best.choose_decoding(found)
        self._tell(f"decoding chosen among {len(found)}: CIDEr-D {found[0][1]['cider_d']:.1f}")

    def _record(self, stage: Stage, kind: str, **facts: Any) -> None:
        progress = self.progress
        record = {
            "kind": kind,
            "step": progress.step,
            "total_steps": self.total_steps,
            "stage": stage.settings.name,
            "epoch": round(progress.stage_step / stage.steps_per_epoch, 3),
            "images_seen": progress.images_seen,
            "seconds": round(progress.seconds + self._window.elapsed(), 1),
            **facts,
        }
        if self.workers.rank == 0:
            self._history.add(record)
        else:
            progress.history.append(record)
        # Writing it down is no training.
        self._window.rest()

    def _tell(self, message: str) -> None:
        """A line for people that belongs to no step."""
        progress = self.progress
        record = {"kind": "note", "step": progress.step, "total_steps": self.total_steps, "message": message}
        if self.workers.rank == 0:
            self._history.add(record)


def _is_better(mark: float, best: float | None) -> bool:
    """Whether a score is a new best. While nothing right is said at all, what has learned longer is."""
    return best is None or mark > best or mark == best == 0.0


def _best_name(stage: int) -> str:
    return f"stage-{stage:02d}-best"
