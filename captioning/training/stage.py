"""One stage of a training run in one worker: a model, an objective, an optimiser, and steps.

The gradient of a step is that of the mean over all its units (tokens, images), however they are
spread over workers and passes. Knows nothing of files or of other stages.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from captioning.errors import CaptioningError
from captioning.models.base import CaptionModel
from captioning.training.batches import Batch, BatchMaker, grouped, read_ahead
from captioning.training.figures import StepFacts
from captioning.training.objectives.base import Objective
from captioning.training.optim import WeightAverage, make_optimizer, schedule_factor
from captioning.training.settings import TrainSettings
from captioning.training.sources import Source
from captioning.training.state import State, Tensors, flatten_optimizer, unflatten_optimizer
from captioning.training.workers import Workers


class DivergedError(CaptioningError):
    """The loss is no number any more."""


class Stage:
    """A model in training under one objective."""

    def __init__(
        self,
        number: int,
        settings: TrainSettings,
        model: CaptionModel,
        objective: Objective,
        source: Source,
        batches: BatchMaker,
        workers: Workers,
    ) -> None:
        self.number = number
        self.settings = settings
        self.model = model.to(workers.device)
        self.objective = objective
        self.source = source
        self.batches = batches
        self.workers = workers
        if objective.extra is not None:
            objective.extra.to(workers.device)
        self.optimizer = make_optimizer(model, settings.optim, objective.extra)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        decay = settings.optim.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
        self.per_worker = settings.images_per_step // workers.world
        self.steps_per_epoch = source.steps(source.size, self.per_worker, workers.world)
        self.total_steps = self.steps_per_epoch * settings.epochs
        if settings.compile:
            model.compile(dynamic=True)

    def epoch(self, epoch: int, *, start: int) -> Iterator[list[Batch]]:
        """For each step of `epoch` after the first `start`, this worker's passes; as many steps in every worker."""
        settings = self.settings

        def make() -> Iterator[list[Batch]]:
            samples = self.source.epoch(epoch, self.workers, start=start * self.per_worker)
            made = start
            for group in grouped(samples, self.per_worker):
                parts = grouped(group, settings.images_per_pass)
                yield [self.source.batch(self.batches, part, epoch) for part in parts]
                made += 1
            for _ in range(made, self.steps_per_epoch):
                yield []

        return read_ahead(make)

    def step(self, passes: Sequence[Batch], step: int) -> StepFacts:
        """Optimiser step number `step` (from 0) on this worker's `passes` (none, if its data is used up)."""
        factor = schedule_factor(self.settings.optim, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.objective.done = step / self.total_steps
        facts = self.gradient(passes, step)
        norm = torch.nn.utils.clip_grad_norm_(self.trained, self.settings.optim.clip_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model, step)
        return StepFacts(facts.means, facts.units, facts.tokens, facts.images, float(norm))

    def gradient(self, passes: Sequence[Batch], step: int = 0) -> StepFacts:
        """Fill the gradients with those of the mean loss over the units of all passes of all workers."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        counts = [
            sum(self.objective.units(batch) for batch in passes),
            sum(batch.num_targets for batch in passes),
            sum(len(batch.keys) or len(batch.captions) for batch in passes),
        ]
        units, tokens, images = self.workers.sums(counts)
        facts: Counter[str] = Counter()
        # An objective that compares what all workers have needs all of them in every pass.
        count = int(max(self.workers.gather(len(passes)))) if self.objective.joint else len(passes)
        for number in range(count):
            self._seed(step, number)
            with self.autocast():
                if number < len(passes):
                    loss = self.objective.loss(self.model, passes[number].to(self.workers.device))
                else:
                    loss = self.objective.absent(self.model)
            (loss.total / units).backward()  # type: ignore[no-untyped-call]
            facts.update(loss.facts)
        self.workers.sum_gradients(self.trained)
        means = {name: total / max(units, 1) for name, total in self.workers.sum_facts(facts).items()}
        if not abs(means["loss"]) < float("inf"):
            raise DivergedError(
                f"The loss is {means['loss']} at step {step} of stage {self.settings.name!r}. Lower optim.lr or "
                "optim.clip_norm, or use precision=fp32, and start again; the run can go on from its last saved state."
            )
        return StepFacts(means, int(units), int(tokens), int(images))

    def tensors(self) -> Tensors:
        """All that a saved state must hold."""
        tensors = {"model": self.model.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.weights
        if self.objective.extra is not None:
            tensors["extra"] = self.objective.extra.state_dict()
        return tensors

    def restore(self, state: State) -> None:
        """Go on from a saved state of this stage."""
        self.model.load_state_dict(state.tensors("model"))
        unflatten_optimizer(self.optimizer, state.tensors("optimizer"))
        if self.average is not None:
            self.average.load(state.tensors("average"))
        if self.objective.extra is not None:
            self.objective.extra.load_state_dict(state.tensors("extra"))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the settings ask for."""
        if self.settings.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.workers.device.type, dtype=torch.bfloat16)

    def _seed(self, step: int, number: int) -> None:
        # Dropout depends on (seed, stage, step, rank, pass) alone: a resumed run draws what it would have drawn.
        numbers = (self.settings.seed, self.number, step, self.workers.rank, number)
        torch.manual_seed(hash(numbers) & 0x7FFF_FFFF)
