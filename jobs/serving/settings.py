"""Settings of the `serve` verb."""

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
    """Limits of the endpoint: requests beyond them are refused with a reason, before any work."""

    max_mb: Annotated[int, Ge(1), Le(1024)] = 20
    """MiB of an image file, and of all images of a request together (status 413)."""

    max_pixels: Annotated[int, Ge(1), Le(MOST_PIXELS)] = 50_000_000
    """Width × height of an image (status 422, class `too_large`)."""

    max_images: Annotated[int, Ge(1)] = 16
    """Images of one request (status 413)."""

    max_requests: Annotated[int, Ge(1)] = 128
    """Requests in flight at once; more are refused (status 503, Retry-After)."""

    client_rate: Annotated[float, Ge(0)] = 0.0
    """Sustained requests per second from one address (status 429, Retry-After); 0 for no limit."""

    client_burst: Annotated[int, Ge(1)] = 20
    """Requests that one address may send in a burst. Only with `client_rate`."""

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
    """How captioners are served."""

    decoding: dict[str, Any] = field(default_factory=dict)
    """Decoding settings that override the captioner's own; a request's options override both."""

    replicas: Annotated[int, Ge(1)] = 1
    """Processes that each captioner runs in."""

    threads: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Threads of each such process; `auto` divides three quarters of this machine's cores among them."""

    own_cores: bool = True
    """On CPUs, give captioners cores that nothing else of the server uses (on Linux, with a Ray that it
    starts, and for the first server of a machine)."""

    gpus_per_replica: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GPUs, or the share of one, for each such process; `auto` divides the available ones."""

    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Images per batch at most; `auto` means 32 on CPUs and 128 on a GPU."""

    decode_processes: Annotated[int, Ge(1), Le(64)] = 2
    """Images decoded at once, for each process of a captioner."""

    precision: Precision = "fp32"
    """bf16 is faster where the hardware has it; int8, for the image encoder of CNNs, on any CPU."""

    encoder: EncoderBackend = "auto"
    """The image encoder's back end on CPUs: auto, eager, onednn or compile; affects only the speed."""

    cuda_graphs: bool = False
    """On a GPU, record a CLIP-GPT2's decoding steps as CUDA graphs instead of launching kernel by kernel."""

    limits: LimitSettings = field(default_factory=LimitSettings)
    decode: DecodeSettings = field(default_factory=lambda: DecodeSettings(timeout_s=15.0, memory_mb=2048))
    storage: StorageSettings = field(default_factory=StorageSettings)
