"""Settings of the `caption` verb. Knows how they are written, not what is done with them."""

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from captioning.backends.names import EncoderBackend, Precision
from captioning.config import build, read_values, settings
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.run.fetch import FetchSettings
from captioning.run.sources import InputSettings
from captioning.storage import StorageSettings
from jobs.verb_settings import read_config
from jobs.workers.decode_process import DecodeSettings


@settings
class OutputSettings:
    """How the table is cut."""

    shard_size: Annotated[int, Ge(1), Le(4096)] | None = None
    """Images a shard, the unit of work and of resume; chosen from the archive's size when not given.
    Fixed for a run once it has begun."""


@settings
class RuntimeSettings:
    """Who does the work, and how fast. Only `precision` can change captions."""

    runner: Literal["auto", "ray", "local"] = "auto"
    """Where captioners run: on Ray (the cluster of RAY_ADDRESS, or one of its own on this machine), or as processes of
    this machine, which start sooner. `auto` takes those for up to 50,000 images, where no cluster and no GPU is and
    `decode_tasks` is left at auto."""

    actors: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Captioner processes: one a GPU, else one a core, unless given."""

    max_actors: Annotated[int, Ge(1)] | None = None
    """The most captioners on GPUs that an autoscaling cluster is asked for, while each further one finds ten minutes
    of work; with `actors` left at auto. Not set: the cluster is never asked to grow."""

    gpus_per_actor: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GPUs, or the share of one, that each captioner takes; 0 captions on CPUs."""

    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Images that go through the model together: 64 on CPUs and 128 on a GPU, unless given."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes GPUs where the cluster has them."""

    precision: Precision = "fp32"
    """bf16 is faster where the hardware has it; int8, for the image encoder of CNNs, on any CPU. Both can change
    captions: part of the fingerprint."""

    encoder: EncoderBackend = "auto"
    """What runs the image encoder on CPUs: `auto` measures, when a captioner is loaded, whether `onednn` (packed
    and fused layers) or `eager` (PyTorch as it is) is faster; `compile` is built for a minute by a C compiler."""

    cuda_graphs: bool = False
    """On a GPU, the steps of a CLIP-GPT2's decoder are recorded and played back instead of started kernel by kernel."""

    decode_tasks: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Shards that are fetched and decoded at the same time, at most."""

    max_retries: Annotated[int, Ge(0)] = 3
    """How often a decoding task whose process died is tried again before the run gives up. (An image cannot
    end it: see `decode`. A captioner's process is replaced as often as it takes, and a shard at which two have
    died is captioned in isolation.)"""

    hang_s: Annotated[float, Ge(0)] = 900.0
    """Seconds that a captioner may take over one micro-batch; one that is still at it then is ended (0: never)."""

    stall_s: Annotated[float, Ge(0)] = 1800.0
    """Seconds in which a run on Ray may make no progress at all, such as when no node has room for it; then it
    ends with exit code 1, to be given again (0: it waits for ever). Why it waits is said after a minute."""


@settings
class ErrorSettings:
    """How many images may fail."""

    max_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    """Above this fraction of failed images the command ends with exit code 1; the rows are written all the same."""


@settings
class CaptionSettings:
    """Everything that `--config` and `--set` of `caption` can say."""

    input: InputSettings = field(default_factory=InputSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    decoding: DecodingSettings = field(default_factory=DecodingSettings, metadata={"defaults": "the checkpoint's"})
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    errors: ErrorSettings = field(default_factory=ErrorSettings)


def read_caption_settings(config: Path | None, overrides: Sequence[str]) -> tuple[CaptionSettings, dict[str, Any]]:
    """The settings as given, and the decoding keys that were given.

    The decoding of a checkpoint is its own default: what was given here is laid over that, not
    over this program's defaults. Raises `SettingsError`.
    """
    text, where = read_config(config)
    values = read_values(text, overrides, where=where)
    checked = dict(values)
    given = values.get("decoding") or {}
    if isinstance(given, dict) and "num_captions" in given and "beam_size" not in given:
        # Whether there are beams enough is for the checkpoint's own beam size to say, later.
        checked["decoding"] = {**given, "beam_size": 100}
    parsed = build(CaptionSettings, checked, where=where)
    if not isinstance(given, dict):
        raise SettingsError(f"In {where}: 'decoding' must be a mapping of keys to values.")
    _check(parsed, where)
    return parsed, given


def _check(given: CaptionSettings, where: str) -> None:
    runtime = given.runtime
    if runtime.device == "cpu" and runtime.gpus_per_actor not in ("auto", 0):
        raise SettingsError(
            f"In {where}: runtime.device is cpu but runtime.gpus_per_actor is {runtime.gpus_per_actor}: "
            "leave one of the two out."
        )
    if runtime.device == "cuda" and runtime.gpus_per_actor == 0:
        raise SettingsError(
            f"In {where}: runtime.device is cuda but runtime.gpus_per_actor is 0: leave one of the two out."
        )
    if runtime.precision == "int8" and (runtime.device == "cuda" or runtime.encoder not in ("auto", "onednn")):
        raise SettingsError(
            f"In {where}: runtime.precision int8 is for CPUs and for runtime.encoder auto or onednn: "
            "leave one of the two out."
        )
    if runtime.cuda_graphs and (runtime.device == "cpu" or runtime.gpus_per_actor == 0 or runtime.runner == "local"):
        raise SettingsError(
            f"In {where}: runtime.cuda_graphs is for GPUs, and captioners are to run on CPUs: leave one of the two out."
        )
    if runtime.max_actors is not None and (runtime.runner == "local" or runtime.device == "cpu"):
        raise SettingsError(
            f"In {where}: runtime.max_actors asks a Ray cluster for GPUs, and runtime.runner is {runtime.runner} and "
            f"runtime.device {runtime.device}: leave runtime.max_actors out."
        )
    if runtime.max_actors is not None and runtime.actors != "auto":
        raise SettingsError(
            f"In {where}: runtime.max_actors is {runtime.max_actors}, but runtime.actors is {runtime.actors} for good: "
            "leave one of the two out."
        )
    share = runtime.gpus_per_actor
    if share != "auto" and share > 1 and share != int(share):
        raise SettingsError(f"In {where}: runtime.gpus_per_actor is {share}: above 1 it must be a whole number.")
