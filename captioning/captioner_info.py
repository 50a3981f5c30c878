"""Metadata of a captioner, read without loading it: name, preprocessing, decoding, and all that its captions depend on.

For planning, checking and driving runs. PyTorch, which takes seconds and hundreds of megabytes, is not
imported; `captioner` does the captioning.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from captioning.backends.names import Precision
from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.models.checkpoint_config import hash_files, read_config
from captioning.refs import resolve
from captioning.storage import StorageSettings

#: By precision; incremented whenever a change in the code changes captions for the same weights and settings.
NUMERICS_VERSION: Mapping[Precision, int] = {"fp32": 3, "bf16": 3, "int8": 4}


@dataclass(frozen=True)
class CaptionerInfo:
    """A captioner's metadata."""

    name: str
    folder: Path
    preprocess: PreprocessSettings
    decoding: DecodingSettings
    #: Everything that its captions depend on; the fingerprint hashes this.
    identity: Mapping[str, Any]
    provenance: Mapping[str, Any]


def inspect_captioner(
    ref: str | os.PathLike[str] | None = None,
    *,
    decoding: Mapping[str, Any] | None = None,
    precision: Precision = "fp32",
    storage: StorageSettings = StorageSettings(),
) -> CaptionerInfo:
    """The metadata of the captioner `ref`, with `decoding` overrides applied; loads no weights.

    Raises `CheckpointError` or `SettingsError`.
    """
    if precision not in get_args(Precision):
        raise SettingsError(f"Unknown precision {precision!r}: use {', '.join(get_args(Precision))}.")
    stem, folder = resolve(ref, storage)
    config = read_config(folder)
    hashes = hash_files(folder)
    settings = override_decoding(config.decoding, decoding or {})
    if settings.prompt:
        from captioning.data.tokenizers import encode_prompt, load_tokenizer

        encode_prompt(load_tokenizer(folder), settings.prompt)
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
