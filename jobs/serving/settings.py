"""Settings of the `serve` verb. Knows how they are written, not what is done with them."""

from dataclasses import field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le

from captioning.backends.names import EncoderBackend, Precision
from captioning.config import settings
from captioning.data.images import MOST_PIXELS
from captioning.storage import StorageSettings
from jobs.workers.decode_process import DecodeSettings


@settings
class LimitSettings:
    """Limits of the endpoint: what is beyond them is refused with a reason, before any work."""

    max_mb: Annotated[int, Ge(1), Le(1024)] = 20
    """MiB of an image file, and of all images of a request together (status 413)."""

    max_pixels: Annotated[int, Ge(1), Le(MOST_PIXELS)] = 50_000_000
    """Width × height of an image (status 422, class `too_large`)."""

    max_images: Annotated[int, Ge(1)] = 16
    """Images of one request (status 413)."""

    max_requests: Annotated[int, Ge(1)] = 128
    """Requests under way at once; one more is told to come again (status 503, Retry-After)."""

    client_rate: Annotated[float, Ge(0)] = 0.0
    """Requests a second that one address may send, for long (status 429, Retry-After); 0 sets no bound."""

    client_burst: Annotated[int, Ge(1)] = 20
    """Requests that one address may send at once, after a rest. Only with `client_rate`."""

    max_beam_size: Annotated[int, Ge(1), Le(100)] = 10
    """The most beams that a request may ask for (status 422)."""

    max_new_tokens: Annotated[int, Ge(1)] = 60
    """The most tokens that a request may ask for (status 422)."""

    timeout_s: Annotated[float, Gt(0)] = 60.0
    """Seconds that a request may take, its upload included (status 504)."""

    @property
    def max_bytes(self) -> int:
        """`max_mb` in bytes."""
        return self.max_mb << 20

    @property
    def max_body_bytes(self) -> int:
        """Bytes of a request's body: images in base64 are a third longer, and there is some text around them."""
        return self.max_bytes * 4 // 3 + (1 << 20)


@settings
class ServeSettings:
    """Everything that `--config` and `--set` of `serve` can say."""

    decoding: dict[str, Any] = field(default_factory=dict)
    """Settings of the decoding laid over the captioner's own; what a request asks for is laid over both."""

    replicas: Annotated[int, Ge(1)] = 1
    """Processes that each captioner runs in."""

    threads: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Threads of each such process; `auto` shares out three quarters of this machine's cores among them."""

    own_cores: bool = True
    """On CPUs, captioners have cores that nothing else of the server runs on (Linux, a Ray that it
    starts, and the first server of a machine)."""

    gpus_per_replica: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GPUs, or the share of one, that each such process takes; `auto` shares out those there are."""

    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Images that go through the model together at most: 32 on CPUs and 128 on a GPU, unless given."""

    decode_processes: Annotated[int, Ge(1), Le(64)] = 2
    """Images that are decoded at once, for each process of a captioner."""

    precision: Precision = "fp32"
    """bf16 is faster where the hardware has it; int8, for the image encoder of CNNs, on any CPU."""

    encoder: EncoderBackend = "auto"
    """What runs the image encoder on CPUs: auto, eager, onednn or compile; changes the speed alone."""

    cuda_graphs: bool = False
    """On a GPU, the steps of a CLIP-GPT2's decoder are recorded and played back instead of started kernel by kernel."""

    limits: LimitSettings = field(default_factory=LimitSettings)
    decode: DecodeSettings = field(default_factory=lambda: DecodeSettings(timeout_s=15.0, memory_mb=2048))
    storage: StorageSettings = field(default_factory=StorageSettings)
