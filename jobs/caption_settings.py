"""Settings of the `caption` verb, and the checks across several of them."""

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
    """How the table is divided."""

    shard_size: Annotated[int, Ge(1), Le(4096)] | None = None
    """Images per shard, the unit of work and of resume; chosen from the archive's size when not given.
    Fixed for a run once it has begun."""


@settings
class RuntimeSettings:
    """Who does the work, and how fast. Only `precision` can change captions."""

    runner: Literal["auto", "ray", "local"] = "auto"
    """Where captioners run: on Ray (the cluster at RAY_ADDRESS, or a local one), or as local processes, which start
    sooner. `auto` uses local processes for up to 50,000 images if there is no cluster and no GPU and `decode_tasks` is
    left at auto."""

    actors: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Number of captioner processes; by default one per GPU, else one per core."""

    max_actors: Annotated[int, Ge(1)] | None = None
    """The most captioners on GPUs to request from an autoscaling cluster, as long as each further one has ten minutes
    of work; with `actors` left at auto. If not set, the cluster is never asked to scale up."""

    gpus_per_actor: Annotated[float, Ge(0)] | Literal["auto"] = "auto"
    """GPUs, or the fraction of one, per captioner; 0 captions on CPUs."""

    batch_size: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """Images per batch of the model; by default 64 on CPUs and 128 on a GPU."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` uses GPUs if the cluster has any."""

    precision: Precision = "fp32"
    """bf16 is faster on hardware that supports it; int8, for the image encoder of CNNs, on any CPU. Both can change
    captions, and so are part of the fingerprint."""

    encoder: EncoderBackend = "auto"
    """What runs the image encoder on CPUs: `auto` measures, when a captioner is loaded, whether `onednn` (packed
    and fused layers) or `eager` (plain PyTorch) is faster; `compile` needs a C compiler, and a minute to compile."""

    cuda_graphs: bool = False
    """On a GPU, capture the decoding steps of a CLIP-GPT2 as CUDA graphs and replay them instead of launching each
    kernel."""

    decode_tasks: Annotated[int, Ge(1)] | Literal["auto"] = "auto"
    """The most shards that are fetched and decoded at the same time."""

    max_retries: Annotated[int, Ge(0)] = 3
    """How often a decoding task whose process died is retried before the run gives up. (Images do not end it, see
    `decode`. A captioner's process is always replaced, and a shard at which two have died is captioned in
    isolation.)"""

    hang_s: Annotated[float, Ge(0)] = 900.0
    """The time limit of a captioner for one micro-batch in seconds, after which its process is ended (0: none)."""

    stall_s: Annotated[float, Ge(0)] = 1800.0
    """Seconds without any progress after which a run on Ray ends with exit code 1, such as when no node has room for
    it; run the command again to resume (0: it waits forever). The reason for waiting is shown after a minute."""


@settings
class ErrorSettings:
    """How many images may fail."""

    max_fraction: Annotated[float, Ge(0), Le(1)] = 0.2
    """Above this fraction of failed images the command ends with exit code 1; the rows are still written."""


@settings
class CaptionSettings:
    """All settings of `caption`, as given with `--config` and `--set`."""

    input: InputSettings = field(default_factory=InputSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    decoding: DecodingSettings = field(default_factory=DecodingSettings, metadata={"defaults": "the checkpoint's"})
    runtime: RuntimeSettings = field(default_factory=RuntimeSettings)
    fetch: FetchSettings = field(default_factory=FetchSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    storage: StorageSettings = field(default_factory=StorageSettings)
    errors: ErrorSettings = field(default_factory=ErrorSettings)


def read_caption_settings(config: Path | None, overrides: Sequence[str]) -> tuple[CaptionSettings, dict[str, Any]]:
    """The settings, and the decoding keys that were given.

    A checkpoint has its own decoding defaults, which the keys given here override. Raises `SettingsError`.
    """
    text, where = read_config(config)
    values = read_values(text, overrides, where=where)
    checked = dict(values)
    given = values.get("decoding") or {}
    if isinstance(given, dict) and "num_captions" in given and "beam_size" not in given:
        # Whether the checkpoint's beam size allows so many captions is checked later.
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
            "remove one of them."
        )
    if runtime.device == "cuda" and runtime.gpus_per_actor == 0:
        raise SettingsError(f"In {where}: runtime.device is cuda but runtime.gpus_per_actor is 0: remove one of them.")
    if runtime.precision == "int8" and (runtime.device == "cuda" or runtime.encoder not in ("auto", "onednn")):
        raise SettingsError(
            f"In {where}: runtime.precision int8 works only on CPUs, with runtime.encoder auto or onednn: "
            "remove it or the conflicting setting."
        )
    if runtime.cuda_graphs and (runtime.device == "cpu" or runtime.gpus_per_actor == 0 or runtime.runner == "local"):
        raise SettingsError(
            f"In {where}: runtime.cuda_graphs is for GPUs, but other settings run captioners on CPUs: "
            "remove it or the conflicting setting."
        )
    if runtime.max_actors is not None and (runtime.runner == "local" or runtime.device == "cpu"):
        raise SettingsError(
            f"In {where}: runtime.max_actors requests GPUs from a Ray cluster, but runtime.runner is {runtime.runner} "
            f"and runtime.device is {runtime.device}: remove runtime.max_actors."
        )
    if runtime.max_actors is not None and runtime.actors != "auto":
        raise SettingsError(
            f"In {where}: runtime.max_actors is {runtime.max_actors}, but runtime.actors fixes the number at "
            f"{runtime.actors}: remove one of them."
        )
    share = runtime.gpus_per_actor
    if share != "auto" and share > 1 and share != int(share):
        raise SettingsError(f"In {where}: runtime.gpus_per_actor is {share}: above 1 it must be a whole number.")
