"""One stage of a training run in one worker: a model, an objective, an optimiser, and the training step.

A step's gradient is that of the mean loss over all its units (tokens, images), however they are divided
among workers and passes (micro-batches). A step's batch is cut into as many slices as the settings have
workers. If workers are lost, the remaining ones take several slices each, and the result is the same.
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
from captioning.training.batches import Batch, Collator, batched, prefetch
from captioning.training.compiled import compile_model
from captioning.training.fsdp import (
    ShardedModel,
    clip_sharded_gradients,
    gather_tensors,
    shard_optimizer,
    shard_tensors,
)
from captioning.training.objectives.base import Loss, Objective
from captioning.training.optim import (
    WeightAverage,
    interpolate_weights,
    make_optimizer,
    schedule_factor,
    trained_weights,
)
from captioning.training.settings import TrainSettings
from captioning.training.sources import Source
from captioning.training.state import State, Tensors, flatten_optimizer, unflatten_optimizer
from captioning.training.throughput import StepMetrics
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
        collator: Collator,
        workers: Workers,
    ) -> None:
        self.number = number
        self.settings = settings
        # FSDP moves the model to the device module by module: as a whole it may not fit.
        self.sharded = ShardedModel(model, workers) if settings.fsdp and workers.world_size > 1 else None
        self.model = model.to(workers.device)
        self.objective = objective
        self.source = source
        self.collator = collator
        self.workers = workers
        if objective.extra is not None:
            objective.extra.to(workers.device)
        self.optimizer = make_optimizer(model, settings.optim, objective.extra)
        self.trained = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        if self.sharded is not None and objective.extra is not None:
            # Fused and foreach kernels do not take DTensors and plain tensors together.
            for group in self.optimizer.param_groups:
                group["foreach"] = group["fused"] = False
        decay = settings.optim.ema_decay
        self.average = None if decay is None else WeightAverage(model, decay)
        self._start = trained_weights(model) if settings.optim.start_share else {}
        self.num_slices = slice_count(settings, workers)
        self.slice_size = settings.images_per_step // self.num_slices
        self.steps_per_epoch = source.steps(source.size, self.slice_size, self.num_slices)
        self.total_steps = self.steps_per_epoch * settings.epochs
        if settings.compile:
            compile_model(model)

    def epoch(self, epoch: int, *, start: int) -> Iterator[list[Batch]]:
        """This worker's passes of each step of `epoch`, from step `start` on. All workers have equally many steps."""
        settings, on_gpu = self.settings, self.workers.device.type == "cuda"
        skipped = start * self.slice_size

        def make() -> Iterator[list[Batch]]:
            streams = {
                index: batched(
                    self.source.epoch(epoch, index, num_slices=self.num_slices, start=skipped), self.slice_size
                )
                for index in self.workers.slices(self.num_slices)
            }
            for _ in range(start, self.steps_per_epoch):
                passes = []
                for index, groups in streams.items():
                    for number, samples in enumerate(batched(next(groups, []), settings.images_per_pass)):
                        batch = self.source.batch(self.collator, samples, epoch)
                        passes.append(dataclasses.replace(batch, position=(index, number)))
                yield [batch.pin_memory() for batch in passes] if on_gpu else passes

        return prefetch(make)

    def step(self, passes: Sequence[Batch], step: int) -> StepMetrics:
        """Optimiser step number `step` (from 0) on this worker's `passes` (none if its data is used up)."""
        factor = schedule_factor(self.settings.optim, step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        self.objective.progress = step / self.total_steps
        metrics = self.gradient(passes, step)
        norm = self._clip(self.settings.optim.clip_norm)
        self.optimizer.step()
        # Fused kernels do not bump the weights' version, by which decoding invalidates its cache (`models.prepared`).
        torch.autograd.graph.increment_version(self.trained)
        if self.average is not None:
            self.average.update(self.model, step)
        return dataclasses.replace(metrics, gradient_norm=norm)

    def gradient(self, passes: Sequence[Batch], step: int = 0) -> StepMetrics:
        """Compute the gradients of the mean loss over the units of all passes of all workers."""
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        counts = [
            sum(self.objective.units(batch) for batch in passes),
            sum(batch.num_targets for batch in passes),
            sum(len(batch.keys) or len(batch.captions) for batch in passes),
        ]
        units, tokens, images = self.workers.sum_each(counts)
        sums: Counter[str] = Counter()
        for number, batch in enumerate(self._pad_passes(passes)):
            self._seed(step, *((self.workers.rank, number) if batch is None else batch.position))
            with self.autocast():
                loss = self._loss(batch, padding=number >= len(passes))
            (loss.total / units).backward()  # type: ignore[no-untyped-call]
            sums.update(loss.metrics)
        # FSDP has summed those of its DTensors during backward.
        self.workers.sum_gradients(parameter for parameter in self.trained if not isinstance(parameter, DTensor))
        means = {name: total / max(units, 1) for name, total in self.workers.sum_by_name(sums).items()}
        if not abs(means["loss"]) < float("inf"):
            raise DivergedError(
                f"The loss is {means['loss']} at step {step} of stage {self.settings.name!r}. Lower optim.lr or "
                "optim.clip_norm, or use precision=fp32, and train into another OUTPUT."
            )
        return StepMetrics(means, int(units), int(tokens), int(images))

    def tensors(self) -> Tensors:
        """All tensors of a saved state. Called by all workers; rank 0 gets them (see `gather_tensors`)."""
        tensors = {"model": self.model.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.average is not None:
            tensors["average"] = self.average.weights
        if self._start:
            tensors["start"] = self._start
        if self.objective.extra is not None:
            tensors["extra"] = self.objective.extra.state_dict()
        return {name: gather_tensors(part, self.workers) for name, part in tensors.items()}

    def validation_weights(self) -> Mapping[str, Tensor]:
        """The weights that replace the model's own in validation and in the best checkpoint: EMA, `start_share`."""
        share = self.settings.optim.start_share
        if not share:
            return {} if self.average is None else self.average.weights
        trained = trained_weights(self.model) if self.average is None else self.average.weights
        return interpolate_weights(trained, self._start, share)

    def weights(self) -> Mapping[str, Tensor]:
        """The model's current weights. Called by all workers; rank 0 gets them (see `gather_tensors`)."""
        return gather_tensors(self.model.state_dict(), self.workers)

    def restore(self, state: State) -> None:
        """Load a saved state of this stage."""
        self.model.load_state_dict(shard_tensors(state.tensors("model"), self.model.state_dict()))
        unflatten_optimizer(self.optimizer, state.tensors("optimizer"))
        shard_optimizer(self.optimizer)
        if self.average is not None:
            self.average.load(shard_tensors(state.tensors("average"), self.average.weights))
        for name, value in shard_tensors(state.tensors("start"), self._start).items() if self._start else ():
            self._start[name].copy_(value)
        if self.objective.extra is not None:
            self.objective.extra.load_state_dict(state.tensors("extra"))

    def autocast(self) -> AbstractContextManager[Any]:
        """A context with the precision of the settings."""
        if self.settings.precision == "fp32":
            return nullcontext()
        # With FSDP, cast weights are not cached: gathered weights must be freed after use.
        return torch.autocast(self.workers.device.type, dtype=torch.bfloat16, cache_enabled=self.sharded is None)

    def _pad_passes(self, passes: Sequence[Batch]) -> list[Batch | None]:
        """This worker's passes, padded to the largest number of passes of any worker where that is needed.

        FSDP needs every worker in every pass: the padding is another worker's batch. A collective
        objective needs it as well, and without FSDP the padding is None.
        """
        if not self.objective.collective and self.sharded is None:
            return list(passes)
        counts = self.workers.gather(len(passes))
        missing: list[Batch | None] = [None] * (max(counts) - len(passes))
        if self.sharded is not None and min(counts) < max(counts):
            first = next(batch for batches in self.workers.gather(list(passes[:1])) for batch in batches)
            missing = [first for _ in missing]
        return [*passes, *missing]

    def _loss(self, batch: Batch | None, *, padding: bool) -> Loss:
        """The loss of a pass. One that is `padding` takes part in the collective calls and contributes zero."""
        if batch is None:
            return self.objective.loss_without_batch(self.model)
        batch = batch.to(self.workers.device)
        if self.sharded is None:
            return self.objective.loss(self.model, batch)

        def forward() -> tuple[Tensor, dict[str, float]]:
            if not padding:
                loss = self.objective.loss(self.model, batch)
                return loss.total, loss.metrics
            if self.objective.collective:
                embedded = self.model.embed_images(batch.stem_of(self.model)).sum()
                return self.objective.loss_without_batch(self.model).total + 0 * embedded, {}
            return 0 * self.objective.loss(self.model, batch).total, {}

        return Loss(*self.sharded.run(forward))

    def _clip(self, norm: float) -> float:
        """Clip the gradient to `norm`. Returns its norm before."""
        if self.sharded is None:
            return float(torch.nn.utils.clip_grad_norm_(self.trained, norm))
        return clip_sharded_gradients(self.trained, norm, self.workers)

    def _seed(self, step: int, index: int, number: int) -> None:
        # Dropout depends on (seed, stage, step, slice, pass) alone, so a resumed run repeats it.
        torch.manual_seed(hash((self.settings.seed, self.number, step, index, number)) & 0x7FFF_FFFF)


def slice_count(settings: TrainSettings, workers: Workers) -> int:
    """The number of equal slices that a step's batch is cut into."""
    return max(settings.workers, workers.world_size)
