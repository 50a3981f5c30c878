"""The training loop: one optimiser step after another, validated, saved, and gone on with.

Runs in each worker. Knows torch.distributed through `Workers`, and never Ray. The gradient of a
step is that of the mean over all its tokens, however they are spread over workers and passes.
"""

import dataclasses
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from captioning.captioner import Captioner
from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardSet
from captioning.errors import CaptioningError
from captioning.models.checkpoint import save_checkpoint
from captioning.storage import Location
from captioning.training.batches import Batch, BatchMaker, grouped, read_ahead
from captioning.training.card import model_card, recipe
from captioning.training.curves import draw_curves
from captioning.training.objectives import cross_entropy_sum
from captioning.training.optim import WeightAverage, make_optimizer, schedule_factor, swapped
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.state import Progress, load_state, save_state
from captioning.training.stream import epoch_samples, share_size
from captioning.training.validation import describe, score
from captioning.training.workers import Workers

METRICS = "metrics.jsonl"
CURVES = "curves.png"
BEST = "best"
SUMMARY = "summary.json"

#: Peak memory is told in KiB, on macOS in bytes.
_RSS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10

#: Hears every record of the history as it is made (rank 0 only).
Report = Callable[[dict[str, Any]], None]


class DivergedError(CaptioningError):
    """The loss is no number any more."""


@dataclass(frozen=True)
class StepFacts:
    """What one optimiser step saw, over all workers: the mean loss a token, tokens and images."""

    loss: float
    tokens: int
    images: int


class TrainingRun:
    """A model in training, in one of the workers."""

    def __init__(
        self,
        settings: TrainSettings,
        parts: Parts,
        shards: ShardSet,
        output: Location,
        workers: Workers | None = None,
        report: Report | None = None,
    ) -> None:
        self.settings = settings
        self.workers = workers or Workers()
        self.shards = shards
        self.output = output
        self.model = parts.model.to(self.workers.device)
        self.tokenizer = parts.tokenizer
        self.preprocess = parts.preprocess
        self.optimizer = make_optimizer(self.model, settings.optim)
        decay = settings.optim.ema_decay
        self.average = None if decay is None else WeightAverage(self.model, decay)
        self.batches = BatchMaker(
            Preprocess(self.preprocess),
            self.tokenizer,
            max_tokens=min(settings.max_tokens, self.model.max_positions() or settings.max_tokens),
            flip=settings.flip,
            seed=settings.seed,
        )
        total = shards.counts["train"]
        self._per_worker = settings.images_per_step // self.workers.world
        longest = max(share_size(total, rank=r, world=self.workers.world) for r in range(self.workers.world))
        self.steps_per_epoch = -(-longest // self._per_worker)
        self.total_steps = self.steps_per_epoch * settings.epochs
        self.progress = Progress()
        self._report = report
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.captioner()  # decoding that the model has no room for is refused now, not at the first validation

    def run(self, stop_at: int | None = None) -> Progress:
        """Train to the end, from the newest saved state if there is one; `stop_at` a step, for tests.

        Raises `DivergedError`, and `InputError` for data that cannot be read.
        """
        self.progress = load_state(self.output, self.model, self.optimizer, self.average) or Progress()
        self._window = _Window()
        while self.progress.epoch < self.settings.epochs and not self.progress.stopped_early:
            for passes in self._epoch():
                if stop_at is not None and self.progress.step >= stop_at:
                    return self.progress
                self._window.waited()
                facts = self.step(passes)
                if self._after_step(facts):
                    break
            else:
                self.progress.epoch += 1
                self.progress.epoch_step = 0
                self._maybe_validate(end_of_epoch=True)
        self._finish()
        return self.progress

    def step(self, passes: Sequence[Batch]) -> StepFacts:
        """One optimiser step on this worker's `passes` (none, if its data is used up) and the others'."""
        factor = schedule_factor(self.settings.optim, self.progress.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        facts = self.gradient(passes)
        torch.nn.utils.clip_grad_norm_(self._trained, self.settings.optim.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, self.progress.step)
        return facts

    def gradient(self, passes: Sequence[Batch]) -> StepFacts:
        """Fill the gradients with those of the mean loss over the tokens of all passes of all workers."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        tokens = self.workers.sum(sum(batch.num_targets for batch in passes))
        images = self.workers.sum(sum(len(batch.keys) for batch in passes))
        likelihood = 0.0
        for number, batch in enumerate(passes):
            self._seed(number)
            batch = batch.to(self.workers.device)
            with self._autocast():
                scored = self.model(self.model.encode(batch.pixels), batch.captions, batch.images)
            loss, plain = cross_entropy_sum(scored, batch.captions, label_smoothing=self.settings.label_smoothing)
            (loss / tokens).backward()  # type: ignore[no-untyped-call]
            likelihood += float(plain)
        self.workers.sum_gradients(self._trained)
        mean = self.workers.sum(likelihood) / max(tokens, 1)
        if not mean < float("inf"):
            raise DivergedError(
                f"The loss is {mean} at step {self.progress.step}. Lower optim.lr or optim.clip_norm, or use "
                "precision=fp32, and start again; the run can go on from its last saved state."
            )
        return StepFacts(mean, int(tokens), int(images))

    def captioner(self) -> Captioner:
        """The model as it stands, as a captioner that decodes as in validation."""
        decoding, beams = self.settings.decoding, self.settings.validation.beam_size
        if beams is not None:
            decoding = dataclasses.replace(decoding, beam_size=beams, num_captions=1)
        return Captioner(self.model, self.tokenizer, self.preprocess, decoding, precision=self.settings.precision)

    def validate(self) -> float:
        """Generate, score, keep the best checkpoint, and say whether to stop; CIDEr-D in percent."""
        settings, progress = self.settings.validation, self.progress
        with swapped(self.model, self.average.weights if self.average else None):
            described = describe(
                self.captioner(), self.shards, settings.split, workers=self.workers, images=settings.images
            )
            scores = self.workers.broadcast(score(described).summary() if self.workers.rank == 0 else None)
            samples = [(d.key, d.caption.text) for d in described[: settings.samples]]
            better = progress.best_score is None or scores["cider_d"] > progress.best_score
            if better:
                progress.best_score, progress.best_step = scores["cider_d"], progress.step
                progress.validations_since_best = 0
                if self.workers.rank == 0:
                    self._save_best(scores, samples)
            else:
                progress.validations_since_best += 1
        self.model.train()
        progress.validated_step = progress.step
        patience = settings.patience
        progress.stopped_early = patience is not None and progress.validations_since_best >= patience
        self._record("validation", **scores, best=better, samples=[list(sample) for sample in samples])
        return scores["cider_d"]

    def _epoch(self) -> Iterator[list[Batch]]:
        """The rest of the present epoch: for each step this worker's passes, as many steps in every worker."""
        progress, settings, workers = self.progress, self.settings, self.workers
        epoch, done = progress.epoch, progress.epoch_step

        def make() -> Iterator[list[Batch]]:
            samples = epoch_samples(
                self.shards,
                "train",
                epoch=epoch,
                seed=settings.seed,
                rank=workers.rank,
                world=workers.world,
                shuffle=True,
                start=done * self._per_worker,
            )
            made = done
            for group in grouped(samples, self._per_worker):
                yield [self.batches.make(part, epoch) for part in grouped(iter(group), settings.images_per_pass)]
                made += 1
            for _ in range(made, self.steps_per_epoch):
                yield []

        return read_ahead(make)

    def _after_step(self, facts: StepFacts) -> bool:
        """Count, record, validate and save as is due; whether to stop early."""
        progress, settings = self.progress, self.settings
        progress.step += 1
        progress.epoch_step += 1
        progress.images_seen += facts.images
        self._window.stepped(facts)
        if progress.step % settings.log_every_steps == 0 or progress.step == self.total_steps:
            self._record("step", lr=self.optimizer.param_groups[0]["lr"], **self._window.close())
        every = settings.validation.every_steps
        if every and progress.step % every == 0:
            self._maybe_validate()
        if progress.step % settings.save_every_steps == 0:
            self._save_state()
        return progress.stopped_early

    def _maybe_validate(self, *, end_of_epoch: bool = False) -> None:
        every = self.settings.validation.every_steps
        at_end = self.progress.step >= self.total_steps
        if self.progress.validated_step != self.progress.step and (every is None or not end_of_epoch or at_end):
            self.validate()
            self._save_state()

    def _save_state(self) -> None:
        self.progress.seconds += self._window.lap()
        if self.workers.rank == 0:
            save_state(self.output, self.progress, self.model, self.optimizer, self.average)
            self._write_history()

    def _finish(self) -> None:
        self._save_state()
        if self.workers.rank == 0:
            progress = dataclasses.asdict(self.progress)
            del progress["history"]
            (self.output / SUMMARY).write_text(json.dumps({**progress, "finished": True}, indent=2) + "\n")

    def _save_best(self, scores: dict[str, float], samples: list[tuple[str, str]]) -> None:
        data = {"dataset": self.shards.dataset, "images": self.shards.counts}
        step = self.progress.step
        name = Path(self.output.name).name or "captioner"
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(
                Path(folder),
                self.model,
                self.tokenizer,
                self.preprocess,
                self.settings.decoding,
                provenance={
                    "data": data,
                    "step": step,
                    "images_seen": self.progress.images_seen,
                    "validation": scores,
                    "settings": recipe(self.settings),
                },
                card=model_card(name, self.settings, data, scores, samples, step=step),
                dtype=self.settings.save_dtype,
            )
            for path in sorted(Path(folder).iterdir(), key=lambda path: path.name == "config.json"):
                (self.output / BEST / path.name).write_bytes(path.read_bytes())

    def _record(self, kind: str, **facts: Any) -> None:
        progress = self.progress
        record = {
            "kind": kind,
            "step": progress.step,
            "total_steps": self.total_steps,
            "epoch": round(progress.step / self.steps_per_epoch, 3),
            "images_seen": progress.images_seen,
            "seconds": round(progress.seconds + self._window.elapsed(), 1),
            **facts,
        }
        progress.history.append(record)
        if self.workers.rank == 0:
            self._write_history()
            if self._report is not None:
                self._report(record)

    def _write_history(self) -> None:
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in self.progress.history)
        (self.output / METRICS).write_text(lines)
        if self.progress.history and self.progress.history[-1]["kind"] == "validation":
            picture = draw_curves(self.progress.history)
            if picture is not None:
                (self.output / CURVES).write_bytes(picture)

    def _seed(self, number: int) -> None:
        # Dropout depends on (seed, step, rank, pass) alone: a resumed run draws what it would have drawn.
        numbers = (self.settings.seed, self.progress.step, self.workers.rank, number)
        torch.manual_seed(hash(numbers) & 0x7FFF_FFFF)

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.workers.device.type, dtype=torch.bfloat16)


class _Window:
    """Rates between two records: where the time went."""

    def __init__(self) -> None:
        self._saved = self._opened = self._ready = time.perf_counter()
        self._reset()

    def _reset(self) -> None:
        self._loss, self._tokens, self._images, self._waiting = 0.0, 0, 0, 0.0

    def waited(self) -> None:
        """The next batch has come."""
        self._waiting += time.perf_counter() - self._ready

    def stepped(self, facts: StepFacts) -> None:
        """A step is done."""
        self._loss += facts.loss * facts.tokens
        self._tokens += facts.tokens
        self._images += facts.images
        self._ready = time.perf_counter()

    def elapsed(self) -> float:
        """Seconds since the last lap."""
        return time.perf_counter() - self._saved

    def lap(self) -> float:
        """Seconds since the last lap; the next one begins."""
        elapsed = self.elapsed()
        self._saved += elapsed
        return elapsed

    def close(self) -> dict[str, float]:
        """The window's figures; the next one begins."""
        now = time.perf_counter()
        seconds = max(now - self._opened, 1e-9)
        facts = {
            "loss": round(self._loss / max(self._tokens, 1), 5),
            "tokens_per_second": round(self._tokens / seconds, 1),
            "images_per_second": round(self._images / seconds, 2),
            "data_wait_share": round(self._waiting / seconds, 4),
            "memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _RSS_PER_MB),
        }
        self._opened = self._ready = now
        self._reset()
        return facts
