"""One stage of a training run in one worker: a model, an objective, an optimiser, and steps.

The gradient of a step is that of the mean over all its units (tokens, images), however they are
spread over workers and passes. A step's work is cut into shares, as many as the settings have
workers. Where there are fewer, because some were lost, they work on several shares each and learn
the same. Knows nothing of files or of other stages.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from captioning.errors import DivergedError
from captioning.models.base import CaptionModel
from captioning.training.batches import Batch, BatchMaker, grouped, read_ahead
from captioning.training.compiled import compile_model
from captioning.training.figures import StepFacts
from captioning.training.fsdp import Spread, clip_spread_gradients, gather_tensors, spread_optimizer, spread_tensors
from captioning.training.objectives.base import Loss, Objective
from captioning.training.optim import WeightAverage, make_optimizer, mixed, schedule_factor, trained_weights
from captioning.training.settings import TrainSettings
from captioning.training.sources import Source
from captioning.training.state import State, Tensors, flatten_optimizer, unflatten_optimizer
from captioning.training.workers import Workers


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
        # A model that is spread moves to its device part by part: as a whole it may not fit.
        self.spread = Spread(model, workers) if settings.fsdp and workers.world > 1 else None
        self.model = model.to(workers.device)
        self.objective = objective
        self.source = source
        self.batches = batches
        self.workers = workers
        if objective.extra is not None:
            objective.extra.to(workers.device)
        self.optimizer = make_optimizer(model, settings.optim, objective.extra)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.spread is not None and objective.extra is not None:
            # One call for many tensors takes spread ones or others, not both.
            for group in self.optimizer.param_groups:
                group["foreach"] = group["fused"] = False
        decay = settings.optim.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
        self._start = trained_weights(model) if settings.optim.start_share else {}
        self.shares = shares_of(settings, workers)
        self.per_share = settings.images_per_step // self.shares
        self.steps_per_epoch = source.steps(source.size, self.per_share, self.shares)
        self.total_steps = self.steps_per_epoch * settings.epochs
        if settings.compile:
            compile_model(model)

    def epoch(self, epoch: int, *, start: int) -> Iterator[list[Batch]]:
        """For each step of `epoch` after the first `start`, this worker's passes; as many steps in every worker."""
        settings, on_gpu = self.settings, self.workers.device.type == "cuda"

        def make() -> Iterator[list[Batch]]:
            streams = {
                share: grouped(
                    self.source.epoch(epoch, share, of=self.shares, start=start * self.per_share), self.per_share
                )
                for share in self.workers.shares(self.shares)
            }
            for _ in range(start, self.steps_per_epoch):
                passes = []
                for share, groups in streams.items():
                    for number, part in enumerate(grouped(next(groups, []), settings.images_per_pass)):
                        batch = self.source.batch(self.batches, part, epoch)
                        passes.append(dataclasses.replace(batch, place=(share, number)))
                yield [batch.pinned() for batch in passes] if on_gpu else passes

        return read_ahead(make)

    def step(self, passes: Sequence[Batch], step: int) -> StepFacts:
        """Optimiser step number `step` (from 0) on this worker's `passes` (none, if its data is used up)."""
        factor = schedule_factor(self.settings.optim, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.objective.done = step / self.total_steps
        facts = self.gradient(passes, step)
        norm = self._clip(self.settings.optim.clip_norm)
        self.optimizer.step()
        # Fused kernels change weights without a trace, and decoding keeps what it has made of them (`models.prepared`).
        torch.autograd.graph.increment_version(self.trained)
        if self.average is not None:
            self.average.update(self.model, step)
        return StepFacts(facts.means, facts.units, facts.tokens, facts.images, norm)

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
        for number, batch in enumerate(self._in_step(passes)):
            self._seed(step, *((self.workers.rank, number) if batch is None else batch.place))
            with self.autocast():
                loss = self._loss(batch, present=number < len(passes))
            (loss.total / units).backward()  # type: ignore[no-untyped-call]
            facts.update(loss.facts)
        # Those that are spread have been summed on the way.
        self.workers.sum_gradients(parameter for parameter in self.trained if not isinstance(parameter, DTensor))
        means = {name: total / max(units, 1) for name, total in self.workers.sum_facts(facts).items()}
        if not abs(means["loss"]) < float("inf"):
            raise DivergedError(
                f"The loss is {means['loss']} at step {step} of stage {self.settings.name!r}. Lower optim.lr or "
                "optim.clip_norm, or use precision=fp32, and train into another OUTPUT."
            )
        return StepFacts(means, int(units), int(tokens), int(images))

    def tensors(self) -> Tensors:
        """All that a saved state must hold; asked for by all workers, given to rank 0 (see `gather_tensors`)."""
        tensors = {"model": self.model.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.weights
        if self._start:
            tensors["start"] = self._start
        if self.objective.extra is not None:
            tensors["extra"] = self.objective.extra.state_dict()
        return {name: gather_tensors(part, self.workers) for name, part in tensors.items()}

    def judged_weights(self) -> Mapping[str, Tensor]:
        """Those of the weights that are other than the model's own when it is validated and saved."""
        share = self.settings.optim.start_share
        if not share:
            return {} if self.average is None else self.average.weights
        return mixed(trained_weights(self.model) if self.average is None else self.average.weights, self._start, share)

    def weights(self) -> Mapping[str, Tensor]:
        """The model's weights as they stand; asked for by all workers, given to rank 0 (see `gather_tensors`)."""
        return gather_tensors(self.model.state_dict(), self.workers)

    def restore(self, state: State) -> None:
        """Go on from a saved state of this stage."""
        self.model.load_state_dict(spread_tensors(state.tensors("model"), self.model.state_dict()))
        unflatten_optimizer(self.optimizer, state.tensors("optimizer"))
        spread_optimizer(self.optimizer)
        if self.average is not None:
            self.average.load(spread_tensors(state.tensors("average"), self.average.weights))
        for name, value in spread_tensors(state.tensors("start"), self._start).items() if self._start else ():
            self._start[name].copy_(value)
        if self.objective.extra is not None:
            self.objective.extra.load_state_dict(state.tensors("extra"))

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the settings ask for."""
        if self.settings.precision == "fp32":
            return nullcontext()
        # Weights that are spread are not kept as they were cast either: they shall be here for a moment only.
        return torch.autocast(self.workers.device.type, dtype=torch.bfloat16, cache_enabled=self.spread is None)

    def _in_step(self, passes: Sequence[Batch]) -> list[Batch | None]:
        """This worker's passes, and one for each that only other workers have.

        FSDP wants all workers in every pass, with some batch to run the model on; so does an
        objective that compares what all have, which runs on None.
        """
        if not self.objective.joint and self.spread is None:
            return list(passes)
        counts = self.workers.gather(len(passes))
        missing: list[Batch | None] = [None] * (max(counts) - len(passes))
        if self.spread is not None and min(counts) < max(counts):
            first = next(batch for batches in self.workers.gather(list(passes[:1])) for batch in batches)
            missing = [first for _ in missing]
        return [*passes, *missing]

    def _loss(self, batch: Batch | None, *, present: bool) -> Loss:
        """The loss of a pass, or nothing for one in which the others' batches alone count."""
        if batch is None:
            return self.objective.absent(self.model)
        batch = batch.to(self.workers.device)
        if self.spread is None:
            return self.objective.loss(self.model, batch)

        def work() -> tuple[Tensor, dict[str, float]]:
            if present:
                loss = self.objective.loss(self.model, batch)
                return loss.total, loss.facts
            if self.objective.joint:
                ran = self.model.embed_images(batch.stem_of(self.model)).sum()
                return self.objective.absent(self.model).total + 0 * ran, {}
            return 0 * self.objective.loss(self.model, batch).total, {}

        return Loss(*self.spread.run(work))

    def _clip(self, norm: float) -> float:
        """Cut the gradient to this norm; the norm it had."""
        if self.spread is None:
            return float(torch.nn.utils.clip_grad_norm_(self.trained, norm))
        return clip_spread_gradients(self.trained, norm, self.workers)

    def _seed(self, step: int, share: int, number: int) -> None:
        # Dropout depends on (seed, stage, step, share, pass) alone: a resumed run draws what it would have drawn.
        torch.manual_seed(hash((self.settings.seed, self.number, step, share, number)) & 0x7FFF_FFFF)


def shares_of(settings: TrainSettings, workers: Workers) -> int:
    """Into how many equal shares a step's work is cut."""
    return max(settings.workers, workers.world)
