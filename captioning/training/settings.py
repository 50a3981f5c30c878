"""What a training run is told. One frozen dataclass a part; read by `captioning.config`."""

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
    """`word`: the words of the train captions; `bpe`: GPT-2's byte-level pairs."""

    min_count: _Positive = 5
    """Words seen fewer times are unknown, and never written."""

    vocab_size: Annotated[int, Ge(257)] = 8000
    """Tokens of a `bpe` tokenizer that is trained on the captions."""

    lowercase: bool = False
    """A `bpe` tokenizer that is trained reads captions in lower case, without the full stop at their end."""

    extend: bool = True
    """With `init`, whose vocabulary is kept: words that it lacks and that are seen `min_count` times are added to it.
    (A `bpe` tokenizer lacks none.)"""

    source: str | None = None
    """A hub id or a folder in the hub's layout (GPT-2's, say) that has the `bpe` tokenizer; null: train one."""


@settings
class OptimSettings:
    """AdamW, its schedule and what steadies it."""

    lr: Annotated[float, Gt(0)] = 2e-3
    """Peak learning rate of what starts random."""

    pretrained_lr: Annotated[float, Gt(0)] = 1.5e-4
    """Peak learning rate of what starts pretrained, where it is trained at all."""

    encoder_lr: Annotated[float, Gt(0)] | None = None
    """Peak learning rate of the image encoder, where it is trained at all; null: that of its weights, as above."""

    weight_decay: Annotated[float, Ge(0)] = 0.01
    """Decay of matrices; vectors and embeddings are left alone."""

    warmup_steps: Annotated[int, Ge(0)] = 200
    """Steps in which the rates rise from zero."""

    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the rates go from their peak to zero at the last step."""

    clip_norm: Annotated[float, Gt(0)] = 5.0
    """The gradient's norm is cut to this."""

    ema_decay: _Share | None = 0.995
    """Decay of the moving average of the weights that is validated and saved; null: the weights themselves."""

    start_share: _Share = 0.0
    """How much of what is validated and saved is what the stage began with, the rest being what it has learned. The two
    averaged know more than either where a stage learns from few images (WiSE-FT, Wortsman et al. 2022)."""


@settings
class ValidationSettings:
    """When captions are generated and scored, and when that ends the training."""

    split: str = "val"
    """The split whose captions are scored."""

    every_steps: _Positive | None = None
    """Validate so often, besides at the end; null: after each epoch."""

    images: _Positive | None = None
    """Score only so many images; null: all of the split."""

    beam_size: _Positive | None = 1
    """Beams in validation: greedy is quick, and ranks checkpoints as beams do; null: as `decoding` says."""

    patience: _Positive | None = None
    """Stop after so many validations without a better CIDEr-D; null: never."""

    samples: Annotated[int, Ge(0)] = 4
    """Captions shown with each validation."""


@settings
class TrainSettings:
    """Everything that decides what a training run makes."""

    data: str | None = None
    """Folder or URI of training shards, as `prepare` makes them."""

    text: str | None = None
    """A file of captions without photos, for the objective `language_model` and for a tokenizer that is trained: a
    line a caption (`.txt`), or a table as `prepare` reads. Null: the captions of the train split."""

    storage: StorageSettings = StorageSettings()
    """How `data` and the output are reached, where they are in object storage."""

    init: str | None = None
    """A checkpoint to start from, instead of a new `model`: its model, words, preprocessing and decoding."""

    model: ModelSettings = CnnLstmSettings()
    """The new captioner: its `kind`, its parts and their sizes."""

    encoder: EncoderShare | None = None
    """How much of the image encoder learns, of any model: nothing (`frozen`), the parts that make its last and coarsest
    grid (`late`; a transformer: all of it), or `all`; the decoder learns. Null: what the model's settings say."""

    tune: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Laid over the model's settings, those of `init` as well: what of it learns, and how. `encoder.tune_from`,
    `dropout`, `train`, `lora`, whatever leaves the shape of the weights as it is."""

    tokenizer: TokenizerSettings = TokenizerSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    decoding: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The checkpoint's default decoding (`beam_size`, `max_new_tokens`, …); with `init` laid over that of `init`."""

    search: SearchSettings | None = None
    """Search, at the end and on the validation split, for the decoding to keep; null: `decoding` as it stands."""

    objective: Literal["cross_entropy", "self_critical", "contrastive", "language_model"] = "cross_entropy"
    """What is made small: cross entropy of people's captions; `self_critical`: the CIDEr-D of the model's own captions
    made large; `contrastive`: CLIP's, image tower against text; `language_model`: captions read without images."""

    self_critical: SelfCriticalSettings = SelfCriticalSettings()
    contrastive: ContrastiveSettings = ContrastiveSettings()
    optim: OptimSettings = OptimSettings()
    validation: ValidationSettings = ValidationSettings()

    stages: tuple[dict[str, Any], ...] = ()
    """One after the other, each laid over the settings here (`name`, `objective`, `tune`, `optim`, `epochs`, …). A
    stage begins with the best weights of the one before. None: one stage, as the settings say."""

    name: str = "train"
    """What a stage is called in the history."""

    epochs: _Positive = 8
    """Passes over the train split in each stage."""

    images_per_step: _Positive = 32
    """Images of one optimiser step over all workers, each with all its captions (for text: captions)."""

    images_per_pass: _Positive = 16
    """Images a worker holds at once; a step of more is accumulated."""

    max_tokens: _Positive = 40
    """Captions are cut after so many tokens in training."""

    label_smoothing: _Share = 0.1
    """The share of probability that the target spreads over all words."""

    scheduled_sampling: _Share = 0.0
    """The share of words read that are the model's own guesses; reached at the end of the stage, rising from 0."""

    flip: bool = True
    """Mirror every other image, unless a caption of it says left or right."""

    crop: Annotated[float, Interval(gt=0, le=1)] = 1.0
    """Random crops keep at least this share of an image; 1: none are made."""

    feature_cache: str | None = None
    """Where what a frozen (part of an) encoder makes of the images is kept and read again: a folder, a URI, or `auto`
    for OUTPUT/features. Null: the encoder runs in every epoch."""

    views: _Positive = 2
    """Views of an image in the feature cache, mirrored or cropped; an epoch takes one of them."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the arithmetic in training and validation."""

    seed: int = 1
    """What decides random weights, the order of the data and dropout."""

    save_every_steps: _Positive = 200
    """Steps between two states from which training can go on."""

    keep_states: _Positive = 2
    """Saved states that are kept; older ones are deleted."""

    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the weights of `OUTPUT/best`."""

    log_every_steps: _Positive = 20
    """Steps between two records in `metrics.jsonl`."""

    tensorboard: bool = False
    """Write the figures for TensorBoard too, below OUTPUT/tensorboard (extra `tensorboard`; local outputs only)."""

    workers: _Positive = 1
    """Training processes; each takes its share of every step."""

    min_workers: _Positive | None = None
    """So many are enough to begin, and to go on when machines are lost: they take the shares of those that lack, and
    those that come later join in. What is learned is the same; but for `contrastive`, where fewer images are compared
    at once. Null: all `workers` are needed."""

    threads_per_worker: _Positive = 1
    """Threads of the arithmetic in each worker."""

    gpu: bool | None = None
    """One GPU a worker; null: when the cluster has as many."""

    fsdp: bool = False
    """Spread weights, gradients and optimiser over the workers (FSDP), for captioners that do not fit one of them with
    all that training needs. While captions are written the weights are whole in each."""

    compile: bool = False
    """Run the model through torch.compile: quicker steps on a GPU, for some minutes at the start. Not with `fsdp`."""

    def __post_init__(self) -> None:
        if self.images_per_step % self.workers:
            raise ValueError(
                f"images_per_step {self.images_per_step} must be a multiple of workers {self.workers}, "
                "so that every worker takes an equal share"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is more than workers {self.workers}")
        if self.init is None:  # otherwise it is laid over what only the checkpoint knows
            build(DecodingSettings, self.decoding, where="the setting decoding")
        if self.fsdp and self.compile:
            raise ValueError("compile and fsdp do not go together: set one of them to false")
        if self.text is not None and not self.text:
            raise ValueError("text is empty: name a file of captions, or leave it out")
        for number, stage in enumerate(self.stages, start=1):
            fixed = sorted(_WHOLE_RUN & stage.keys())
            if fixed:
                raise ValueError(f"stages: stage {number} sets {fixed[0]}, which belongs to the run as a whole")
            self._stage(stage, number)

    def in_stages(self) -> tuple["TrainSettings", ...]:
        """The settings of each stage: these, with the stage's own laid over them."""
        if not self.stages:
            return (self,)
        return tuple(self._stage(stage, number) for number, stage in enumerate(self.stages, start=1))

    def _stage(self, stage: Mapping[str, Any], number: int) -> "TrainSettings":
        values = {**to_dict(dataclasses.replace(self, stages=())), "name": f"stage-{number}"}
        return build(TrainSettings, deep_merge(values, stage), where=f"stage {number} of the settings")


#: What a stage cannot set for itself.
_WHOLE_RUN = frozenset(
    {"data", "text", "storage", "init", "model", "tokenizer", "preprocess", "decoding", "search", "stages", "seed"}
    | {"save_dtype", "keep_states", "tensorboard", "workers", "min_workers", "threads_per_worker", "gpu", "fsdp"}
)
