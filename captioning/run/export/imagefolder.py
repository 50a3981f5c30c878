"""`imagefolder`: images with a `metadata.jsonl`, as Hugging Face `datasets` loads a folder of images."""

import json
from collections.abc import Iterable
from typing import Any

from captioning.errors import UsageError
from captioning.run.export.base import Format
from captioning.run.export.images import fetch_ahead
from captioning.run.export.names import STATE_FOLDER
from captioning.run.export.table import ExportRow, Piece
from captioning.run.export.target import Counts
from captioning.run.table import SCHEMA
from captioning.storage import Location

#: Columns that have a meaning for the loader or for this export.
_RESERVED = ("file_name", "text", "image")


class ImageFolderFormat(Format):
    """`load_dataset("imagefolder", data_dir=TARGET)` gives `image`, `text` (the caption) and the columns below.

    The loader needs each image at the path in `metadata.jsonl`: images are copied, or linked if they are local
    files, or (`none`) assumed to be there already, as when the target is the archive's own folder.
    """

    name = "imagefolder"
    rows_per_piece: int | None = 1024

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._missing: set[int] = set()
        self._copied_instead = 0

    @property
    def _metadata(self) -> Location:
        return self.target.root / "metadata.jsonl"

    def check(self) -> None:
        """Refuse links in a remote target."""
        if self.options.images == "none":
            self.rows_per_piece = None
        if self.options.images == "link" and not self.target.root.is_local:
            raise UsageError(f"Images cannot be linked in {self.target.root}, which is not a local folder: copy them.")

    def check_new(self) -> None:
        """Refuse a folder that is not empty; if only the metadata is written, refuse to replace it."""
        if self.options.images == "none":
            if self._metadata.info() is not None:
                raise UsageError(f"{self._metadata} already exists: --overwrite replaces it.")
            return
        present = [name for name in self.target.root.names() if name != STATE_FOLDER]
        if present:
            raise UsageError(
                f"{self.target.root} is not empty ({present[0]}): the loader would treat what is in it as images of "
                "the data set. Choose an empty folder, or pass --overwrite to write into this one."
            )

    def write_piece(self, piece: Piece, rows: Iterable[ExportRow]) -> Counts:  # noqa: ARG002
        """Copy or link the images of these rows."""
        counts = Counts()
        wanted = []
        for row in rows:
            if row.failed and self.options.errors == "skip":
                counts += Counts(errors=1)
            elif self._linked(row):
                counts += Counts(written=1)
            else:
                wanted.append(row)
        for row, data in fetch_ahead(wanted, self.options.storage):
            if isinstance(data, str):
                self._missing.add(row.number)
                counts += Counts(missing=1)
                continue
            self.target.put(self.target.root / self._name(row), data)
            counts += Counts(written=1)
        return counts

    def finish(self) -> Counts | None:
        """Write `metadata.jsonl`, one line per image, in one step."""
        written = 0
        with self.target.stream(self._metadata) as file:
            for row in self.all_rows():
                if row.number not in self._missing:
                    file.write((json.dumps(self._metadata_row(row), ensure_ascii=False, default=str) + "\n").encode())
                    written += 1
        return Counts(written=written) if self.rows_per_piece is None else None

    def lines(self) -> list[str]:
        """How to load the folder."""
        said = []
        if self._copied_instead:
            said.append(f"{self._copied_instead:,} images are not separate local files and were copied, not linked.")
        if self.options.images == "none":
            said.append(f"The images are expected below {self.target.root} under their image_id.")
        return [*said, f'load_dataset("imagefolder", data_dir="{self.target.root}") reads it.']

    def _linked(self, row: ExportRow) -> bool:
        if self.options.images != "link":
            return False
        source = Location.from_uri(row.entry.uri)
        if row.entry.tar is not None or row.entry.table is not None or not source.is_local:
            self._copied_instead += 1
            return False
        if source.info() is None:
            return False  # copying it finds out why
        self.target.link(self.target.root / self._name(row), source)
        return True

    def _name(self, row: ExportRow) -> str:
        # The loader skips hidden files, so copies and links get visible names.
        return self.names.image(row.image_id, row.entry.uri, visible=self.options.images != "none")

    def _metadata_row(self, row: ExportRow) -> dict[str, Any]:
        columns = ("image_id", "score", "num_tokens", "width", "height", "model", "status", "error_class")
        given = {key: row.row[key] for key in columns}
        kept = {key: value for key, value in row.row.items() if key not in _RESERVED and key not in SCHEMA.names}
        return {"file_name": self._name(row), "text": row.row["caption"]} | given | kept
