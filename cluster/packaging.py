"""Packs the checkout for the cluster's nodes: code, settings and the bundled captioners.

    package = collect(root, extra={"_submitted/mine.yaml": path})
    package.name    →  "_ray_pkg_<hash>.zip"     package.write(file)

The name is a hash of the content, so an unchanged package is not sent again. Data, run outputs, builds,
environments, caches and tests are left out, as far as names and marker files show them.
"""

import hashlib
import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from captioning.errors import UsageError

#: The checkout that contains this file.
ROOT = Path(__file__).resolve().parent.parent
#: The largest request to Ray's dashboard (DASHBOARD_CLIENT_MAX_SIZE); its store also limits the message size.
LIMIT = 100 * 1024**2
LIMIT_VARIABLE = "RAY_max_grpc_message_size"
#: Packed as a whole, except for caches.
_PACKAGES = ("captioning", "jobs", "cluster")
_NO_FOLDERS = {"__pycache__", "node_modules", "venv", "env", "site-packages", "wandb", "mlruns"}
_NO_FOLDERS_AT_THE_TOP = {"build", "dist", "tests"}
#: A folder with one of these is an environment, training shards, a cache, or the output of a run, and is skipped.
_MARKERS = ("pyvenv.cfg", "shards.json", "CACHEDIR.TAG", "_run")
#: Suffixes of data and weights, which nodes read from where INPUT and --model point.
_DATA = {
    *(".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"),
    *(".tar", ".tgz", ".gz", ".zip", ".parquet", ".arrow", ".npy", ".npz", ".whl"),
    *(".safetensors", ".pt", ".pth", ".ckpt", ".log", ".pyc"),
}
_LARGEST = 5
_OLDEST = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Package:
    """`files` as sorted (name in the package, path); `size` is their total in bytes, `name` the package's name."""

    files: tuple[tuple[str, Path], ...]
    size: int
    name: str

    @property
    def uri(self) -> str:
        """The URI for a job's `working_dir`."""
        return f"gcs://{self.name}"

    def write(self, file: IO[bytes], limit: int | None = None) -> int:
        """Write the zip and return its size in bytes. Above `limit`, raises `UsageError` naming the largest entries."""
        limit = upload_limit() if limit is None else limit
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for name, path in self.files:
                entry = zipfile.ZipInfo(name, _OLDEST)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
                with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as target:
                    while block := source.read(_BLOCK):
                        target.write(block)
                if file.tell() > limit:
                    break
        size = file.tell()
        if size > limit:
            raise self.too_large(limit)
        return size

    def too_large(self, limit: int) -> UsageError:
        """The error that names the largest entries."""
        sizes: Counter[str] = Counter()
        for name, path in self.files:
            parts = name.split("/")
            sizes["/".join(parts[:2]) + ("/" if len(parts) > 2 else "")] += path.stat().st_size
        largest = "\n".join(f"  {mebibytes(size):>10}  {name}" for name, size in sizes.most_common(_LARGEST))
        return UsageError(
            f"The checkout {ROOT} is too large to submit: {len(self.files):,} files of {mebibytes(self.size)} make "
            f"more than the {mebibytes(limit)} that a Ray cluster accepts. The largest entries are\n{largest}\n"
            "Move what the job does not need out of the checkout, or list it in .gitignore. Data and captioners belong "
            "on storage that all nodes can reach, such as s3://…"
        )


def collect(root: Path = ROOT, extra: Mapping[str, Path] | None = None) -> Package:
    """The package of the checkout at `root`, plus the files of `extra` under its keys as names."""
    found = {path.relative_to(root).as_posix(): path for path in _packaged_files(root)}
    found.update(extra or {})
    files = tuple(sorted(found.items()))
    sizes, digest = 0, hashlib.sha1()
    for name, path in files:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha1").hexdigest()
        digest.update(f"{name}\0{os.access(path, os.X_OK):d}\0{content}\n".encode("utf-8", "surrogateescape"))
        sizes += path.stat().st_size
    return Package(files, sizes, f"_ray_pkg_{digest.hexdigest()}.zip")


def is_packaged(path: Path, root: Path = ROOT) -> bool:
    """Whether a file of the checkout is in its package."""
    return path.resolve() in {each.resolve() for each in _packaged_files(root)}


def upload_limit() -> int:
    """The largest package that a cluster accepts, in bytes."""
    try:
        return min(LIMIT, int(os.environ[LIMIT_VARIABLE]))
    except (KeyError, ValueError):
        return LIMIT


def mebibytes(size: int) -> str:
    """A size in MiB, for people."""
    return f"{size / 1024**2:,.1f} MiB"


def _packaged_files(root: Path) -> Iterator[Path]:
    """The files of the checkout that belong in its package, unordered."""
    known = _git_files(root)
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        inside = here.relative_to(root).parts
        ours = inside[:1] in {(name,) for name in _PACKAGES}
        folders[:] = [name for name in folders if _is_walked(here / name, top=not inside, ours=ours)]
        for name in names:
            path = here / name
            if name.startswith(".") or name.endswith(".pyc") or not path.is_file():
                continue
            if not ours and path.suffix.lower() in _DATA:
                continue
            if known is None or path.relative_to(root).as_posix() in known:
                yield path


def _is_walked(folder: Path, *, top: bool, ours: bool) -> bool:
    name = folder.name
    if name.startswith(".") or name == "__pycache__" or folder.is_symlink():
        return False
    if ours:
        return True
    if name in _NO_FOLDERS or name.endswith(".egg-info") or (top and name in _NO_FOLDERS_AT_THE_TOP):
        return False
    return not any((folder / marker).exists() for marker in _MARKERS)


def _git_files(root: Path) -> set[str] | None:
    """All files that git does not ignore; None without git or a repository."""
    if not (root / ".git").exists():
        return None
    listing = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(listing, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return {name.decode("utf-8", "surrogateescape") for name in done.stdout.split(b"\0") if name}
