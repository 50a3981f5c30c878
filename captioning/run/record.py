"""`run.json`: inputs, settings and versions of a run, kept so that it can be resumed, checked and repeated."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from captioning.errors import RunConflictError, UsageError
from captioning.redaction import redacted
from captioning.run.fingerprint import difference, fingerprint
from captioning.run.layout import RunLayout

FORMAT_VERSION = 1

_PACKAGES = (
    "captioning",
    "numpy",
    "pillow",
    "pyarrow",
    "ray",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a run depends on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of `run.json`. INPUTs and settings are redacted: it contains no credentials.

    `inputs` are the INPUTs as in `Source.given`, `kinds` their kinds (`Source.kind`), `archive` the locations that
    image ids are relative to; `settings` are resolved; `fingerprint_parts` are the values that the fingerprint hashes;
    `selection` is the result of `Selection.to_dict`, empty for all images.
    """

    inputs: tuple[str, ...]
    archive: tuple[str, ...]
    shard_size: int
    settings: Mapping[str, Any]
    fingerprint_parts: Mapping[str, Any]
    selection: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=versions)
    created: str = field(default_factory=_now)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        # Redacted here, so that a record equals the one read back from its file.
        for name in ("inputs", "archive"):
            object.__setattr__(self, name, tuple(redacted(getattr(self, name))))
        object.__setattr__(self, "settings", redacted(self.settings))

    @property
    def fingerprint(self) -> str:
        """The hash of `fingerprint_parts`."""
        return fingerprint(self.fingerprint_parts)

    @classmethod
    def read(cls, layout: RunLayout) -> "RunRecord | None":
        """The record of the run in `layout`, None if there is none. Raises `UsageError` if it cannot be read."""
        if not layout.exists():
            return None
        try:
            values = json.loads(layout.run_json.read_bytes())
            version = values["format_version"]
            if not isinstance(version, int) or version > FORMAT_VERSION:
                raise UsageError(
                    f"{layout.run_json} has format version {version}; this version of Captioning reads up to "
                    f"{FORMAT_VERSION}. Use the version that began the run, or a newer one."
                )
            return cls(
                inputs=tuple(values["inputs"]),
                archive=tuple(values["archive"]),
                shard_size=int(values["shard_size"]),
                settings=dict(values["settings"]),
                fingerprint_parts=dict(values["fingerprint_parts"]),
                selection=dict(values.get("selection", {})),
                kinds=tuple(values.get("kinds", ())),
                versions=dict(values["versions"]),
                created=str(values["created"]),
                format_version=version,
            )
        except UsageError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{layout.run_json} is damaged ({type(error).__name__}: {error}). Choose another OUTPUT, or "
                "restore the file."
            ) from error

    def create(self, layout: RunLayout) -> "RunRecord":
        """Write the record if there is none, else check that the existing one is of the same run and return it.

        Of two drivers that start at once, only one writes it. Raises `RunConflictError`.
        """
        if layout.run_json.create_bytes(self._to_json(), temp=layout.tmp_dir):
            return self
        present = RunRecord.read(layout)
        assert present is not None, "a file that could not be created is there"
        present.check(layout, inputs=self.inputs, fingerprint_parts=self.fingerprint_parts, selection=self.selection)
        return present

    def check(
        self,
        layout: RunLayout,
        *,
        inputs: Sequence[str],
        fingerprint_parts: Mapping[str, Any],
        selection: Mapping[str, Any],
        add: bool = False,
    ) -> None:
        """Raise `RunConflictError`, with the differences, unless captioner, INPUTs and selection are those of this run.

        With `add`, further INPUTs are allowed.
        """
        lines = difference(self.fingerprint_parts, fingerprint_parts)
        lines += difference(
            *({f"--{name}": value for name, value in each.items()} for each in (self.selection, selection))
        )
        shown_inputs = redacted(inputs)
        lines += [f"INPUT {given}: in that run → not given" for given in self.inputs if given not in shown_inputs]
        further = [] if add else [given for given in shown_inputs if given not in self.inputs]
        lines += [f"INPUT {given}: not in that run → given" for given in further]
        if lines:
            shown = "\n  ".join(lines)
            hint = " To add INPUTs to that run, pass --add." if further else ""
            raise RunConflictError(
                f"{layout.root} holds a run that differs from this one (that run → now):\n  {shown}\n"
                f"Choose another OUTPUT with -o, or use the model, settings and INPUTs of that run.{hint}"
            )

    def check_captioner(self, layout: RunLayout, fingerprint_parts: Mapping[str, Any]) -> None:
        """Raise `RunConflictError`, with the differences, unless the captioner is that of this run."""
        lines = difference(self.fingerprint_parts, fingerprint_parts)
        if lines:
            shown = "\n  ".join(lines)
            raise RunConflictError(
                f"The captioner is not the one that the run in {layout.root} was made with (that run → now):\n  "
                f"{shown}\nPass the captioner of that run with --model REF."
            )

    def extend(
        self, layout: RunLayout, *, inputs: Sequence[str], archive: Sequence[str], kinds: Sequence[str]
    ) -> "RunRecord":
        """The record with the INPUTs of a grown archive; replaces this one in `run.json` if they differ."""
        extended = replace(self, inputs=tuple(inputs), archive=tuple(archive), kinds=tuple(kinds))
        if extended != self:
            layout.run_json.write_bytes(extended._to_json(), temp=layout.tmp_dir)
        return extended

    def _to_json(self) -> bytes:
        values = {
            "format_version": self.format_version,
            "created": self.created,
            "inputs": list(self.inputs),
            "kinds": list(self.kinds),
            "archive": list(self.archive),
            "shard_size": self.shard_size,
            "fingerprint": self.fingerprint,
            "fingerprint_parts": dict(self.fingerprint_parts),
            "selection": dict(self.selection),
            "settings": dict(self.settings),
            "versions": dict(self.versions),
        }
        return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
