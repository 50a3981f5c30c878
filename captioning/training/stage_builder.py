"""Builds a stage from its settings: the model, the objective and the source of its samples."""

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from pydantic import TypeAdapter
from torch import Tensor

from captioning.config import build, deep_merge, to_dict
from captioning.data.augment import Augment
from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardSet
from captioning.errors import SettingsError
from captioning.models.base import CaptionModel, Vocabulary
from captioning.models.registry import ModelSettings, build_model
from captioning.storage import Location
from captioning.training.batches import Collator
from captioning.training.feature_cache import FeatureCache
from captioning.training.objectives.base import Objective
from captioning.training.objectives.contrastive import Contrastive
from captioning.training.objectives.cross_entropy import CrossEntropy
from captioning.training.objectives.language_model import LanguageModel
from captioning.training.objectives.self_critical import SelfCritical, train_split_cider
from captioning.training.parts import Parts, longest_caption
from captioning.training.settings import TrainSettings
from captioning.training.sources import FeatureSource, ImageSource, Source, TextSource, train_captions
from captioning.training.stage import Stage, slice_count
from captioning.training.workers import Workers

#: Called with progress messages for users.
Log = Callable[[str], None]

#: Below OUTPUT: document frequencies of the train captions, and the folder of the feature cache.
_FREQUENCIES = "cider-frequencies.json.gz"
_FEATURES = "features"


class StageBuilder:
    """Builds the stages of one run."""

    def __init__(
        self, settings: TrainSettings, parts: Parts, shards: ShardSet, output: Location, workers: Workers
    ) -> None:
        self._stages = settings.stage_settings()
        self._parts = parts
        self._shards = shards
        self._output = output
        self._workers = workers
        self._text = settings.text
        # Rebuilds the architecture without fetching pretrained weights.
        self._architecture = to_dict(parts.model.settings)
        self._trained: dict[int, frozenset[str]] = {}

    def build_stage(self, number: int, weights: Mapping[str, Tensor] | None, *, log: Log) -> Stage:
        """Stage `number` at its first step, starting from `weights` (None: those of the parts).

        Frozen weights must have their final values: they are part of the feature cache's key.
        """
        settings = self._stages[number]
        model = self.build_model(number, weights)
        return Stage(
            number,
            settings,
            model,
            self._objective(settings, model),
            self._source(settings, model, log),
            self._collator(settings, model),
            self._workers,
        )

    def build_model(self, number: int, weights: Mapping[str, Tensor] | None) -> CaptionModel:
        """The model as stage `number` tunes it. Raises `SettingsError` if `tune` changes the architecture."""
        parts, tune, share = self._parts, self._stages[number].tune, self._stages[number].encoder
        if share is not None:
            tune = deep_merge(parts.model.encoder_tuning(share), tune)
        if number == 0 and not tune:
            if weights is not None:
                parts.model.load_weights(weights)
            return parts.model
        where = f"the setting tune of stage {self._stages[number].name!r}"
        settings = build(TypeAdapter(ModelSettings), deep_merge(self._architecture, tune), where=where)
        vocabulary = Vocabulary(parts.tokenizer.vocab_size, parts.tokenizer.bos_id, parts.tokenizer.eos_id)
        model = build_model(settings, vocabulary, parts.preprocess, pretrained=False)
        try:
            model.load_weights(parts.model.state_dict() if weights is None else weights)
        except RuntimeError as error:
            raise SettingsError(f"In {where}: it changes the model, so that the weights do not fit: {error}") from error
        model.pretrained_prefixes = tuple(
            part for part in model.pretrained_prefixes if self._is_pretrained(part, number)
        )
        return model

    def _is_pretrained(self, part: str, number: int) -> bool:
        """Whether a part of the model starts stage `number` with weights that were loaded, or trained before."""
        if part in self._parts.model.pretrained_prefixes:
            return True
        return any(name.startswith(part) for earlier in range(number) for name in self._trained_names(earlier))

    def _trained_names(self, number: int) -> frozenset[str]:
        """The names of the parameters that stage `number` trains."""
        if number not in self._trained:
            named = self.build_model(number, None).named_parameters()
            self._trained[number] = frozenset(name for name, weight in named if weight.requires_grad)
        return self._trained[number]

    @torch.no_grad()
    def check(self, number: int) -> None:
        """Raise `SettingsError` if stage `number` changes the architecture, or needs what the model does not have."""
        settings, size = self._stages[number], self._parts.preprocess.size
        model = self.build_model(number, None).eval()
        if settings.objective == "contrastive":
            model.embed_images(model.stem(torch.zeros(1, size, size, 3, dtype=torch.uint8)))
        limit, wanted = model.max_positions(), settings.self_critical.max_new_tokens
        if settings.objective == "self_critical" and limit is not None and wanted is not None and wanted > limit:
            where = f"In stage {settings.name!r}: self_critical.max_new_tokens"
            raise SettingsError(f"{where} is {wanted}, but this captioner has room for {limit} tokens.")

    def steps(self, settings: TrainSettings) -> int:
        """Optimiser steps of a stage."""
        size = len(self._texts) if settings.objective == "language_model" else self._shards.counts["train"]
        slices = slice_count(settings, self._workers)
        return settings.epochs * Source.steps(size, settings.images_per_step // slices, slices)

    def trains_captioner(self, number: int) -> bool:
        """Whether a stage trains the captioner as a whole, rather than a part of it."""
        return self._stages[number].objective in ("cross_entropy", "self_critical")

    @cached_property
    def _texts(self) -> list[str]:
        return train_captions(self._shards, self._text)

    def _objective(self, settings: TrainSettings, model: CaptionModel) -> Objective:
        tokenizer, split = self._parts.tokenizer, settings.validation.split
        if settings.objective == "cross_entropy":
            return CrossEntropy(
                label_smoothing=settings.label_smoothing, scheduled_sampling=settings.scheduled_sampling
            )
        if settings.objective == "self_critical":
            # Rank 0 writes the file, the others read it.
            file = self._output / _FREQUENCIES
            cider = train_split_cider(self._shards, file) if self._workers.rank == 0 else None
            self._workers.gather(True)
            return SelfCritical(
                settings.self_critical,
                tokenizer,
                cider or train_split_cider(self._shards, file),
                max_new_tokens=self._parts.decoding.max_new_tokens,
            )
        longest = longest_caption(settings, model)
        if settings.objective == "language_model":
            return LanguageModel(tokenizer, split=split, label_smoothing=settings.label_smoothing, max_tokens=longest)
        return Contrastive(
            settings.contrastive,
            model,
            tokenizer,
            split=split,
            workers=self._workers,
            preprocess=self._parts.preprocess,
            max_tokens=longest,
            seed=settings.seed,
        )

    def _source(self, settings: TrainSettings, model: CaptionModel, log: Log) -> Source:
        seed = settings.seed
        if settings.objective == "language_model":
            return TextSource(self._texts, seed=seed)
        if settings.feature_cache is None or model.stem_identity() is None:
            return ImageSource(self._shards, seed=seed)
        storage = self._shards.location.settings
        root = self._output / _FEATURES
        if settings.feature_cache != "auto":
            root = Location.parse(settings.feature_cache, storage)
        model.to(self._workers.device)
        cache = FeatureCache.build(
            root,
            model,
            Preprocess(self._parts.preprocess),
            self._augment(settings),
            self._shards,
            splits=("train",),
            views=settings.views,
            precision=settings.precision,
            workers=self._workers,
            log=log,
        )
        return FeatureSource(self._shards, cache, seed=seed)

    def _collator(self, settings: TrainSettings, model: CaptionModel) -> Collator:
        return Collator(
            Preprocess(self._parts.preprocess),
            self._parts.tokenizer,
            self._augment(settings),
            max_tokens=longest_caption(settings, model),
        )

    @staticmethod
    def _augment(settings: TrainSettings) -> Augment:
        return Augment(settings.flip, settings.crop, settings.seed)
