"""A training run: executes the stages in order, validates, saves states and resumes from them.

Runs in every worker, with torch.distributed behind `Workers` and without Ray. `stage.py` has the
training steps, `state.py` the files of a saved state.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from captioning.captioner import Captioner
from captioning.data.shards import ShardSet
from captioning.storage import Location
from captioning.training.best import BestCheckpoint
from captioning.training.decoding_search import search_decoding
from captioning.training.fsdp import unsharded
from captioning.training.history import History, Report, check_tensorboard
from captioning.training.optim import swapped_weights
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.stage_builder import StageBuilder
from captioning.training.state import (
    Progress,
    State,
    StateWriter,
    load_weights,
    newest_state,
    remove_leftovers,
    save_weights,
)
from captioning.training.throughput import StepMetrics, ThroughputMeter
from captioning.training.validation import caption_split, score_samples
from captioning.training.workers import Workers

SUMMARY = "summary.json"


class TrainingRun:
    """A training run as one of the workers executes it."""

    def __init__(
        self,
        settings: TrainSettings,
        parts: Parts,
        shards: ShardSet,
        output: Location,
        workers: Workers | None = None,
        report: Report | None = None,
        notes: Sequence[str] = (),
        preemption_pending: Callable[[], bool] | None = None,
    ) -> None:
        """`notes` are messages at the start of a new run's history.

        `preemption_pending` is called by all workers together. If it returns True, some of them are about to be
        lost, and a state is saved at once.
        """
        self.settings = settings
        self.stages = settings.stage_settings()
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
        self._preemption_pending = preemption_pending
        self._meter = ThroughputMeter()
        self._builder = StageBuilder(settings, parts, shards, output, self.workers)
        self._states = StateWriter(output, keep=settings.keep_states)
        self._best = BestCheckpoint(settings, shards, output, parts)
        self.model = parts.model
        self.total_steps = sum(map(self._builder.steps, self.stages))
        if settings.tensorboard:
            check_tensorboard(output)
        # Fail before training on decoding settings or stages that the model cannot handle.
        self.captioner()
        for number in range(len(self.stages)):
            self._builder.check(number)

    def run(self, stop_at: int | None = None) -> Progress:
        """Train to the end, from the newest saved state if there is one. Tests stop at the step `stop_at`.

        Raises `DivergedError`, and `InputError` for data that cannot be read.
        """
        state = self.workers.on_rank_zero(self._recover_state)
        self.progress = Progress() if state is None else state.progress
        self._history = self._new_history()
        if state is not None and self.workers.rank == 0:
            # Drop the records after the state: those steps are repeated.
            self._history.write()
        notes = [*self._notes]
        if self.settings.fsdp and self.workers.world_size == 1:
            notes.append("fsdp: there is only one worker, which holds the whole model")
        for note in notes if not self.progress.history else ():
            self._note(note)
        self._meter = ThroughputMeter()
        stage = self.start_stage(None if state is None else state.tensors("model"))
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
            stage = self.start_stage(self._best_weights(stage.number))
        self._finish()
        return self.progress

    def captioner(self) -> Captioner:
        """The current model as a captioner, with the decoding of validation."""
        settings = self.stages[self.progress.stage]
        decoding, beams = self.decoding, settings.validation.beam_size
        if beams is not None:
            decoding = dataclasses.replace(decoding, beam_size=beams, num_captions=1)
        return Captioner(self.model, self.tokenizer, self.preprocess, decoding, precision=settings.precision)

    def start_stage(self, weights: Mapping[str, Tensor] | None) -> Stage:
        """Start the current stage from the `weights` of the previous one (None: the initial weights)."""
        stage = self._builder.build_stage(self.progress.stage, weights, log=self._note)
        self.model = stage.model
        self._meter.exclude_pause()
        return stage

    def _new_history(self) -> History:
        """A history that continues the records in `progress`."""
        records, tensorboard = self.progress.history, self.settings.tensorboard
        return History(self.output, records, report=self._report, tensorboard=tensorboard)

    def _recover_state(self) -> State | None:
        """Clean up after a killed run and return the state to resume from."""
        remove_leftovers(self.output)
        complete = self._best.recover()
        state = newest_state(self.output)
        if state is not None and not complete:
            # Killed while a better checkpoint replaced the old one: forget the score, so that the next one is written.
            state.progress.best_score = state.progress.best_step = None
        return state

    def _best_weights(self, stage: int) -> dict[str, Tensor]:
        # Wait for rank 0, which writes them.
        self.workers.gather(True)
        return load_weights(self.output, _best_name(stage))

    def _train(self, stage: Stage, stop_at: int | None) -> None:
        """Run the rest of a stage."""
        progress = self.progress
        while progress.epoch < stage.settings.epochs and not progress.stage_ended:
            for passes in stage.epoch(progress.epoch, start=progress.epoch_step):
                if stop_at is not None and progress.step >= stop_at:
                    return
                self._meter.batch_ready()
                metrics = stage.step(passes, progress.stage_step)
                if self._after_step(stage, metrics):
                    break
            else:
                progress.epoch += 1
                progress.epoch_step = 0
                self._validate_if_due(stage, end_of_epoch=True)
        progress.stage_ended = True

    def _after_step(self, stage: Stage, metrics: StepMetrics) -> bool:
        """Count the step, then log, validate and save if due. Returns whether to stop the stage early."""
        progress, settings = self.progress, stage.settings
        progress.step += 1
        progress.stage_step += 1
        progress.epoch_step += 1
        progress.images_seen += metrics.images
        self._meter.step_done(metrics)
        preempted = False
        if progress.step % settings.log_every_steps == 0 or progress.stage_step == stage.total_steps:
            preempted = self._preemption_pending is not None and self._preemption_pending()
            self._record(stage, "step", lr=stage.optimizer.param_groups[-1]["lr"], **self._meter.flush(self.workers))
        every = settings.validation.every_steps
        if every and progress.stage_step % every == 0:
            self._validate_if_due(stage)
        elif preempted or progress.step % settings.save_every_steps == 0:
            self._save_state(stage)
        return progress.stage_ended

    def _validate_if_due(self, stage: Stage, *, end_of_epoch: bool = False) -> None:
        every = stage.settings.validation.every_steps
        at_end = self.progress.stage_step >= stage.total_steps
        if self.progress.validated_step != self.progress.step and (every is None or not end_of_epoch or at_end):
            self.validate(stage)
            self._save_state(stage)

    def validate(self, stage: Stage) -> float:
        """Score the model, keep the best weights, and end the stage if patience has run out. Returns the score."""
        settings, progress = stage.settings.validation, self.progress
        with swapped_weights(stage.model, stage.validation_weights()):
            metrics, samples = self._evaluate(stage)
            score = metrics["cider_d"] if stage.objective.scored_by_captions else metrics["score"]
            best_of_stage = _is_better(score, progress.stage_best_score)
            best = self._makes_best_checkpoint(stage) and _is_better(score, progress.best_score)
            if best_of_stage:
                progress.stage_best_score, progress.stage_best_step = score, progress.step
                progress.validations_since_best = 0
            else:
                progress.validations_since_best += 1
            if best:
                progress.best_score, progress.best_step = score, progress.step
            weights = stage.weights() if best_of_stage or best else {}
            if self.workers.rank == 0:
                if best_of_stage:
                    save_weights(self.output, _best_name(stage.number), weights)
                if best:
                    self._best.write(stage, weights, progress, metrics, samples)
        stage.model.train()
        progress.validated_step = progress.step
        patience = settings.patience
        ended = patience is not None and progress.validations_since_best >= patience
        if ended:
            progress.stage_ended = progress.stopped_early = True
        self._record(
            stage,
            "validation",
            **metrics,
            best=best,
            best_of_stage=best_of_stage,
            samples=[list(sample) for sample in samples],
        )
        if ended and progress.stage_step < stage.total_steps:
            self._note(
                f"{stage.settings.name}: stopped early, {stage.total_steps - progress.stage_step:,} steps before its "
                f"end. Validation did not improve {patience} times in a row (validation.patience); its best was at "
                f"step {progress.stage_best_step:,}."
            )
        self._meter.exclude_pause()
        return score

    def _evaluate(self, stage: Stage) -> tuple[dict[str, float], list[tuple[str, str]]]:
        """Metrics of the validation split, and sample captions if the objective generates any."""
        settings = stage.settings.validation
        with unsharded(stage.model):
            if not stage.objective.scored_by_captions:
                with stage.autocast():
                    return stage.objective.validate(stage.model, self.shards, self.workers), []
            captioned = caption_split(
                self.captioner(), self.shards, settings.split, workers=self.workers, images=settings.images
            )
        metrics = self.workers.broadcast(score_samples(captioned).summary() if self.workers.rank == 0 else None)
        return metrics, [(sample.key, sample.caption.text) for sample in captioned[: settings.samples]]

    def _makes_best_checkpoint(self, stage: Stage) -> bool:
        """Whether the stage trains a captioner, or no stage does and it is the last one."""
        captioners = [self._builder.trains_captioner(number) for number in range(len(self.stages))]
        return captioners[stage.number] or (not any(captioners) and stage.number + 1 == len(self.stages))

    def _save_state(self, stage: Stage) -> None:
        self.progress.seconds += self._meter.lap()
        tensors = stage.tensors()
        if self.workers.rank == 0:
            self._states.save(self.progress, tensors)
        self._meter.exclude_pause()

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
        if self.workers.on_rank_zero(self._best.has_chosen_decoding):
            return
        captioner = self._best.load(self.workers.device, settings.precision)
        tried = search_decoding(captioner, self.shards, settings.validation.split, settings.search, self.workers)
        if self.workers.rank == 0:
            self._best.choose_decoding(tried)
        self._note(f"decoding chosen from {len(tried)} candidates: CIDEr-D {tried[0][1]['cider_d']:.1f}")

    def _record(self, stage: Stage, kind: str, **values: Any) -> None:
        progress = self.progress
        record = {
            "kind": kind,
            "step": progress.step,
            "total_steps": self.total_steps,
            "stage": stage.settings.name,
            "epoch": round(progress.stage_step / stage.steps_per_epoch, 3),
            "images_seen": progress.images_seen,
            "seconds": round(progress.seconds + self._meter.elapsed(), 1),
            **values,
        }
        if self.workers.rank == 0:
            self._history.add(record)
        else:
            progress.history.append(record)
        self._meter.exclude_pause()

    def _note(self, message: str) -> None:
        """Add a message to the history."""
        progress = self.progress
        record = {"kind": "note", "step": progress.step, "total_steps": self.total_steps, "message": message}
        if self.workers.rank == 0:
            self._history.add(record)


def _is_better(score: float, best: float | None) -> bool:
    """Whether a score is a new best. While all scores are 0, a later one counts as better: it has trained longer."""
    return best is None or score > best or score == best == 0.0


def _best_name(stage: int) -> str:
    return f"stage-{stage:02d}-best"
