"""What a training run is told. One frozen dataclass a part; read by `captioning.config`."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from captioning.config import settings
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.settings import DecodingSettings
from captioning.models.cnn_lstm import CnnLstmSettings
from captioning.models.registry import ModelSettings
from captioning.storage import StorageSettings

_Positive = Annotated[int, Gt(0)]
_Share = Annotated[float, Interval(ge=0, lt=1)]


@settings
class TokenizerSettings:
    """How captions become token ids."""

    kind: Literal["word", "bpe"] = "word"
    """`word`: the words of the train captions; `bpe`: GPT-2's byte-level pairs."""

    min_count: _Positive = 5
    """Words seen fewer times are unknown, and never written."""

    vocab_size: _Positive = 8000
    """Tokens of a `bpe` tokenizer that is trained on the captions."""

    source: str | None = None
    """A hub id or a folder in the hub's layout (GPT-2's, say) that has the `bpe` tokenizer; null: train one."""


@settings
class OptimSettings:
    """AdamW, its schedule and what steadies it."""

    lr: Annotated[float, Gt(0)] = 2e-3
    """Peak learning rate of what starts random."""

    pretrained_lr: Annotated[float, Gt(0)] = 1.5e-4
    """Peak learning rate of what starts pretrained, where it is trained at all."""

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


@settings
class ValidationSettings:
    """When captions are generated and scored, and when that ends the training."""

    split: str = "val"
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

    storage: StorageSettings = StorageSettings()
    """How `data` and the output are reached, where they are in object storage."""

    init: str | None = None
    """A checkpoint to start from (its model, words and preprocessing) instead of a new `model`."""

    model: ModelSettings = CnnLstmSettings()
    tokenizer: TokenizerSettings = TokenizerSettings()
    preprocess: PreprocessSettings = PreprocessSettings()
    decoding: DecodingSettings = DecodingSettings()
    """The checkpoint's default decoding."""

    optim: OptimSettings = OptimSettings()
    validation: ValidationSettings = ValidationSettings()

    epochs: _Positive = 8
    images_per_step: _Positive = 32
    """Images of one optimiser step over all workers, each with all its captions."""

    images_per_pass: _Positive = 16
    """Images a worker holds at once; a step of more is accumulated."""

    max_tokens: _Positive = 40
    """Captions are cut after so many tokens in training."""

    label_smoothing: _Share = 0.1
    flip: bool = True
    """Mirror every other image, unless a caption of it says left or right."""

    precision: Literal["fp32", "bf16"] = "fp32"
    seed: int = 1
    save_every_steps: _Positive = 200
    """Steps between two states from which training can go on."""

    save_dtype: Literal["float32", "float16"] = "float32"
    """Number format of the weights of `OUTPUT/best`."""

    log_every_steps: _Positive = 20
    workers: _Positive = 1
    """Training processes; each takes its share of every step."""

    threads_per_worker: _Positive = 1
    gpu: bool | None = None
    """One GPU a worker; null: when the cluster has as many."""

    def __post_init__(self) -> None:
        if self.images_per_step % self.workers:
            raise ValueError(
                f"images_per_step {self.images_per_step} must be a multiple of workers {self.workers}, "
                "so that every worker takes an equal share"
            )
