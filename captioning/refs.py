"""Resolves a REF (a bundled name, a folder, a URI or a hub repository) to a folder on this machine."""

import hashlib
import importlib.resources
import os
import re
import shutil
from pathlib import Path

from filelock import FileLock

from captioning.errors import CheckpointError, StorageError
from captioning.retries import DEFAULT_POLICY, INTERACTIVE, retry_policy
from captioning.storage import Location, StorageSettings

#: The captioner that is used by default.
DEFAULT = "flickr-lstm"


def bundled_names() -> list[str]:
    """Names of the captioners that come with the package."""
    assets = _assets()
    return sorted(path.name for path in assets.iterdir() if path.is_dir()) if assets.is_dir() else []


def resolve(ref: str | os.PathLike[str] | None, storage: StorageSettings = StorageSettings()) -> tuple[str, Path]:
    """The captioner's short name and its local folder; a remote one is fetched once.

    Raises `CheckpointError` when there is no such captioner.
    """
    ref = os.fspath(ref or DEFAULT)
    if ref in bundled_names():
        return ref, _assets() / ref
    if "://" in ref:
        return _stem(ref), _fetch(Location.parse(ref, storage))
    folder = Path(ref).expanduser()
    if folder.is_dir():
        return _stem(str(folder.resolve())), folder
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w./-]+)?", ref) and not folder.parent.is_dir():
        return _stem(ref.partition("@")[0]), _fetch_from_hub(ref)
    raise CheckpointError(
        f"There is no captioner {ref!r}: it is not a folder, a URI, a hub repository (org/name, unless a folder org "
        f"exists here) or one of the bundled ones ({', '.join(bundled_names()) or 'none'})."
    )


def _stem(ref: str) -> str:
    """A name for a checkpoint; `best` and `last`, which every training run has, are prefixed with the run's name."""
    parts = [part for part in re.split(r"[/\\]+", ref) if part] or ["captioner"]
    return "-".join(parts[-2:]) if parts[-1] in ("best", "last") and len(parts) > 1 else parts[-1]


def _assets() -> Path:
    return Path(str(importlib.resources.files("captioning"))) / "assets"


def _fetch(location: Location) -> Path:
    try:
        with retry_policy(INTERACTIVE):
            files = list(location.walk())
        if not files:
            raise CheckpointError(f"There is no captioner at {location}: it does not exist.")
        version = hashlib.sha256(repr((location.uri, [(f.path, f.size, f.version) for f in files])).encode())
        folder = _cache() / version.hexdigest()[:16]
        if not (folder / ".complete").exists():
            _fetch_once(location, folder)
    except StorageError as error:
        raise CheckpointError(f"The captioner at {location} cannot be read: {error}") from error
    return folder


def _fetch_once(location: Location, folder: Path) -> None:
    """Fetch a checkpoint into `folder`, in one process of this machine at a time.

    If that process dies, its lock is released, and the next one discards what it had fetched.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if (folder / ".complete").exists():
            return
        part = folder.with_name(f"{folder.name}.part")
        for stale in (part, folder):
            shutil.rmtree(stale, ignore_errors=True)
        with retry_policy(DEFAULT_POLICY):
            location.download(part)
        (part / ".complete").touch()
        part.rename(folder)


def _fetch_from_hub(ref: str) -> Path:
    from huggingface_hub import snapshot_download

    name, _, revision = ref.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"The captioner {ref!r} is not a folder and could not be downloaded from the hub: {reason.rstrip('.')}. "
            "Without a network, use a folder or a bundled name."
        ) from error


def _cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "captioning" / "checkpoints"
