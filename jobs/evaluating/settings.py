"""Settings of `evaluate`. Knows no model."""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from captioning.backends.names import EncoderBackend, Precision
from captioning.config import settings
from captioning.storage import StorageSettings
from captioning.training.search_settings import SearchSettings


@settings
class EvaluateSettings:
    """Everything that `--config` and `--set` of `evaluate` can say."""

    decoding: dict[str, Any] = field(default_factory=dict)
    """Settings of the decoding laid over the captioner's own."""

    images: Annotated[int, Ge(1)] | None = None
    """Only the first so many images of the split; scores of different sets are not comparable."""

    meteor: bool | Literal["auto"] = "auto"
    """METEOR, which needs the extra `captioning[meteor]` and Java; `auto` computes it where both are there."""

    people: bool | Literal["auto"] = "auto"
    """What a person scores: one caption of each photo against its others; `auto` where every photo has two or
    more. METEOR of it, which takes five times as long as the captioner's, only where `meteor` is true."""

    search: SearchSettings = field(default_factory=SearchSettings)
    """What `--search` tries."""

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
