"""Settings of `evaluate`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from captioning.backends.names import EncoderBackend, Precision
from captioning.config import settings
from captioning.storage import StorageSettings
from captioning.training.search_settings import SearchSettings


@settings
class EvaluateSettings:
    """The settings of `evaluate`."""

    decoding: dict[str, Any] = field(default_factory=dict)
    """Decoding settings that override the captioner's own."""

    images: Annotated[int, Ge(1)] | None = None
    """Use only this many images, the first of the split; scores of different sets are not comparable. Null: all."""

    meteor: bool | Literal["auto"] = "auto"
    """METEOR, which needs the extra `captioning[meteor]` and Java; `auto` computes it where both are there."""

    people: bool | Literal["auto"] = "auto"
    """Also score people: one reference caption of each photo against its others; `auto`: if every photo has two or
    more. Their METEOR, which takes five times as long as the captioner's, is computed only if `meteor` is true."""

    search: SearchSettings = field(default_factory=SearchSettings)
    """The decodings that `--search` tries."""

    batch_size: Annotated[int, Ge(1)] = 32
    """Images that go through the model together."""

    device: str = "auto"
    """`auto` takes a GPU when there is one; else cpu, cuda or cuda:N."""

    precision: Precision = "fp32"
    """bf16 is faster where the hardware has it; int8, for the image encoder of CNNs, on any CPU. Both can change
    captions."""

    encoder: EncoderBackend = "auto"
    """What runs the image encoder on CPUs: auto, eager, onednn or compile; changes the speed alone."""

    cuda_graphs: bool = False
    """On a GPU, the steps of a CLIP-GPT2's decoder are recorded and played back instead of started kernel by kernel."""

    storage: StorageSettings = field(default_factory=StorageSettings)
