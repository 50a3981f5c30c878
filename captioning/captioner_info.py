"""What a captioner is, known without loading it: name, preprocessing, decoding, and all that its captions rest on.

Whoever plans, checks or drives a run asks here; PyTorch is not imported, which takes seconds and
hundreds of megabytes. What captions is `captioner`.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captioning.backends.names import Precision
from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.settings import DecodingSettings
from captioning.models.checkpoint_config import hash_files, read_config
from captioning.refs import resolve
from captioning.storage import StorageSettings

#: By precision; raised by one whenever the same weights and settings would give other captions.
NUMERICS_VERSION: Mapping[Precision, int] = {"fp32": 2, "bf16": 2, "int8": 3}


@dataclass(frozen=True)
class CaptionerInfo:
    """What a captioner is, known without loading its weights."""

    name: str
    folder: Path
    preprocess: PreprocessSettings
    decoding: DecodingSettings
    #: Everything that decides what it writes; the fingerprint hashes this.
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def inspect_captioner(
    ref: str | None = None,
    *,
    decoding: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    storage: StorageSettings = StorageSettings(),
) -> CaptionerInfo:
    """What the captioner `ref` is and how it would decode, without loading its weights into memory."""
    stem, folder = resolve(ref, storage)
    config = read_config(folder)
    hashes = hash_files(folder)
    settings = override_decoding(config.decoding, decoding or {})
    identity = {
        "files": hashes,
        **config.written,
        "decoding": to_dict(settings),
        "precision": precision,
        "numerics_version": NUMERICS_VERSION[precision],
    }
    short = hashlib.sha256(json.dumps([hashes, config.written], sort_keys=True).encode()).hexdigest()[:8]
    return CaptionerInfo(f"{stem}-{short}", folder, config.preprocess, settings, identity, config.provenance)


def override_decoding(settings: DecodingSettings, overrides: Mapping[str, Any]) -> DecodingSettings:
    """`settings` with some values replaced, checked as if read from a file. Raises `SettingsError`."""
    return build(DecodingSettings, {**to_dict(settings), **overrides}, where="the decoding settings")
