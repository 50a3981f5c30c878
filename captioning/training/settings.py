"""The settings of a training run."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from captioning.config import build, deep_merge, settings, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.settings import DecodingSettings
from captioning.models.cnn_lstm_settings import CnnLstmSettings
from captioning.models.encoder_settings import EncoderShare
from captioning.models.registry import ModelSettings
from captioning.storage import StorageSettings
from captioning.training.decoding_search import SearchSettings
from captioning.training.objectives.contrastive import ContrastiveSettings
from captioning.training.objectives.self_critical import SelfCriticalSettings

_Positive = Annotated[int, Gt(0)]
_Share = Annotated[float, Interval(ge=0, lt=1)]


@settings
class TokenizerSettings:
    """How captions become token ids."""

    kind: Literal["word", "bpe"] = "word"
    """`word`: the words of the train captions; `bpe`: byte-level BPE as in GPT-2."""

    min_count: _Positive = 5
    """Words that occur fewer times are unknown, and never written."""

    vocab_size: Annotated[int, Ge(257)] = 8000
    """Vocabulary size of a `bpe` tokenizer that is trained on the captions."""

    lowercase: bool = False
    """A `bpe` tokenizer that is trained lower-cases captions and removes the full stop at their end."""

    extend: bool = True
    """With `init`, whose vocabulary is kept: add words that it lacks and that occur `min_count` times. (A `bpe`
    tokenizer lacks none.)"""

    source: str | None = None
    """A hub id, or a folder in the hub's layout, with the `bpe` tokenizer to use (GPT-2's, say); null: train one."""


@settings
class OptimSettings:
    """AdamW, its schedule, gradient clipping and weight averaging."""

    lr: Annotated[float, Gt(0)] = 2e-3
    """Peak learning rate of randomly initialised weights."""

    pretrained_lr: Annotated[float, Gt(0)] = 1.5e-4
    """Peak learning rate of pretrained weights, where they are trained."""

    encoder_lr: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of the image encoder, where it is trained; null: `lr` or `pretrained_lr`, by its weights."""

    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Weight decay of matrices; vectors and embeddings have none."""

    warmup_steps: Annotated[int, Ge(0)] = 200
    """Steps in which the learning rates rise from zero to their peak."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rates fall from their peak to zero at the last step, if they do."""

    clip_norm: Annotated[float, Gt(0)] = 5.0
    """The maximum norm of the gradient."""

    ema_decay: _Share | None = 0.995
    """Decay of the exponential moving average of the weights that is validated and saved; null: no averaging."""

    start_share: _Share = 0.0
    """The share of the stage's initial weights in the weights that are validated and saved; the rest are the trained
    ones. Where a stage trains on few images, the average is better than either (WiSE-FT, Wortsman et al. 2022)."""


@settings
class ValidationSettings:
    """When captions are generated and scored, and when training stops early."""

    split: str = "val"
    """The split to caption and score."""

    every_steps: _Positive | None = None
    """Steps between validations, besides one at the end; null: after each epoch."""

    images: _Positive | None = None
    """Use only this many images; null: all of the split."""

    beam_size: _Positive | None = 1
    """Beam size in validation: greedy search is fast, and ranks checkpoints as beam search does; null: as in
    `decoding`."""

    patience: _Positive | None = None
    """Stop after this many validations in a row without a better score; null: never."""

    samples: Annotated[int, Ge(0)] = 4
    """Captions shown with each validation."""


@settings
class TrainSettings:
    """The settings of a training run."""

    data: str | None = None
    """Folder or URI of training shards, as `prepare` makes them."""

    text: str | None = None
    """A file of captions without photos, for the objective `language_model` and for training a tokenizer: one caption
    per line (`.txt`), or a table that `prepare` can read. Null: the captions of the train split."""

    storage: StorageSettings = StorageSettings()
    """Access to `data` and the output in object storage."""

    init: str | None = None
    """A checkpoint to start from, instead of a new `model`: its model, vocabulary, preprocessing and decoding."""

    model: ModelSettings = CnnLstmSettings()
    """The new captioner: its `kind`, its parts and their sizes."""

    encoder: EncoderShare | None = None
    """How much of the image encoder of any model is trained: nothing (`frozen`), the modules that compute its last,
    coarsest grid (`late`; of a transformer: all), or `all`. The decoder is trained. Null: as `model` says."""

    tune: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Overrides of the model's settings, also of those of `init`: what is trained, and how. `encoder.tune_from`,
    `dropout`, `train`, `lora` and all others that do not change the shape of the weights."""

    tokenizer: TokenizerSettings = TokenizerSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The checkpoint's default decoding (`beam_size`, `max_new_tokens`, …); with `init`, overrides of its decoding."""

    search: SearchSettings | None = None
    """Search for the best decoding at the end, on the validation split; null: keep `decoding`."""

    objective: Literal["cross_entropy", "self_critical", "contrastive", "language_model"] = "cross_entropy"
    """`cross_entropy` of the reference captions; `self_critical`: maximise the CIDEr-D of sampled captions;
    `contrastive`: CLIP's, for the image tower; `language_model`: captions without images, for the decoder."""

    self_critical: SelfCriticalSettings = SelfCriticalSettings()
    contrastive: ContrastiveSettings = ContrastiveSettings()
    optim: OptimSettings = OptimSettings()
    validation: ValidationSettings = ValidationSettings()

    stages: tuple[dict[str, Any], ...] = ()
    """Stages to run in order; each overrides the settings here (`name`, `objective`, `tune`, `optim`, `epochs`, …). A
    stage starts from the best weights of the one before. Empty: a single stage."""

    name: str = "train"
    """The name of a stage in the history."""

    epochs: _Positive = 8
    """Passes over the train split in each stage."""

    images_per_step: _Positive = 32
    """Images in an optimiser step over all workers, each with all its captions (for text: captions)."""

    images_per_pass: _Positive = 16
    """Images in a forward and backward pass of one worker (the micro-batch); larger steps accumulate gradients."""

    max_tokens: _Positive = 40
    """Captions are truncated to this many tokens in training."""

    label_smoothing: _Share = 0.1
    """The share of the target's probability that is spread over all words."""

    scheduled_sampling: _Share = 0.0
    """The share of input words that are sampled from the model; it rises from 0 to this at the end of the stage."""

    flip: bool = True
    """Mirror half of the images at random, except those with a caption that says left or right."""

    crop: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """The smallest share of an image that a random crop keeps; 1: no crops."""

    feature_cache: str | None = None
    """Where to cache the features that the frozen part of the encoder computes: a folder, a URI, or `auto` for
    OUTPUT/features. Null: the encoder runs in every epoch."""

    views: _Positive = 2
    """Views of an image in the feature cache, mirrored or cropped; each epoch reads one of them."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of computations in training and validation."""

    seed: int = 1
    """Seed of random weights, the order of the data, augmentation and dropout."""

    save_every_steps: _Positive = 200
    """Steps between two saved states, from which training can be resumed."""

    keep_states: _Positive = 2
    """The number of saved states to keep; older ones are deleted."""

    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the weights of `OUTPUT/best`."""

    log_every_steps: _Positive = 20
    """Steps between two records in `metrics.jsonl`."""

    tensorboard: bool = False
    """Also write the metrics for TensorBoard, to OUTPUT/tensorboard (extra `tensorboard`; local outputs only)."""

    workers: _Positive = 1
    """Training processes, each of which computes an equal part of every step."""

    min_workers: _Positive | None = None
    """The number of workers that suffices to start, and to go on when machines are lost: they do the work of the
    missing ones until those join. The result is the same, except with `contrastive`, which then compares fewer images
    at once. Null: all `workers` are needed."""

    threads_per_worker: _Positive = 1
    """CPU threads of each worker."""

    gpu: bool | None = None
    """Give each worker a GPU; null: if the cluster has enough."""

    fsdp: bool = False
    """Shard weights, gradients and optimiser state over the workers (FSDP), for captioners whose training does not fit
    into the memory of one. While captions are generated each worker holds all weights."""

    compile: bool = False
    """Compile the model with torch.compile: faster steps on a GPU after some minutes at the start. Not with `fsdp`."""

    def __post_init__(self) -> None:
        if self.images_per_step % self.workers:
            raise ValueError(
                f"images_per_step {self.images_per_step} must be a multiple of workers {self.workers}, "
                "so that every worker takes an equal share"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        if self.init is None:  # otherwise it overrides the checkpoint's decoding, which is not read here
            build(DecodingSettings, self.decoding, where="the setting decoding")
        if self.fsdp and self.compile:
            raise ValueError("compile and fsdp cannot be combined: set one of them to false")
        if self.text is not None and not self.text:
            raise ValueError("text is empty: name a file of captions, or leave it out")
        for number, stage in enumerate(self.stages, start=1):
            fixed = sorted(_WHOLE_RUN & stage.keys())
            if fixed:
                raise ValueError(f"stages: stage {number} sets {fixed[0]}, which can only be set for the whole run")
            self._stage(stage, number)

    def stage_settings(self) -> tuple["TrainSettings", ...]:
        """The settings of each stage: these, overridden by the stage's own."""
        if not self.stages:
            return (self,)
        return tuple(self._stage(stage, number) for number, stage in enumerate(self.stages, start=1))

    def _stage(self, stage: Mapping[str, Any], number: int) -> "TrainSettings":
        values = {**to_dict(dataclasses.replace(self, stages=())), "name": f"stage-{number}"}
        return build(TrainSettings, deep_merge(values, stage), where=f"stage {number} of the settings")


#: Settings that a stage cannot override.
_WHOLE_RUN = frozenset(
    {"data", "text", "storage", "init", "model", "tokenizer", "preprocess", "decoding", "search", "stages", "seed"}
    | {"save_dtype", "keep_states", "tensorboard", "workers", "min_workers", "threads_per_worker", "gpu", "fsdp"}
)
