"""`txt`: a text file with the caption of each image, in a tree like the archive's or beside the images."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from captioning.errors import StorageError, UsageError
from captioning.run.export.base import Format
from captioning.run.export.names import split_extension
from captioning.run.export.table import ExportRow, Piece
from captioning.run.export.target import Counts, Target
from captioning.storage import Location

_REMOTE_THREADS = 32


class TxtFormat(Format):
    """`photos/cat.jpg` gives `photos/cat.txt`: its caption and a newline; error rows give no file.

    An existing file with other content may be a user's own: it is kept and counted, unless `overwrite` is set.
    """

    name = "txt"

    def target_at(self, place: Location) -> Target:
        """Beside the images, keep the export's state with the run and not in the archive."""
        if self.options.beside:
            return Target(place, self.table.layout.run_dir / "export-beside")
        return Target(place)

    def check(self) -> None:
        """Refuse error rows, and text files beside images that are not local files of their own."""
        if self.options.errors == "include":
            raise UsageError("--errors include does not apply to txt: a failed image has no caption to write.")
        if not self.options.beside:
            return
        for table in self.table.index.tables(["uri", "tar", "table"]):
            for uri, tar, rows in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if tar is not None or rows is not None or not Location.from_uri(uri).is_local:
                    raise UsageError(
                        f"--beside puts text files beside images that are local files; {uri} is not. "
                        "Omit --beside, and pass a folder with -o."
                    )

    def write_piece(self, piece: Piece, rows: Iterable[ExportRow]) -> Counts:  # noqa: ARG002
        """Write the text files of these rows."""
        if self.target.root.is_local:
            found = [self._write(row) for row in rows]
        else:
            with ThreadPoolExecutor(_REMOTE_THREADS) as pool:
                found = list(pool.map(self._write, rows))
        return sum(found, Counts())

    def _write(self, row: ExportRow) -> Counts:
        if row.failed:
            return Counts(errors=1)
        file = self._file(row)
        data = (" ".join(row.row["caption"].split("\n")) + "\n").encode()
        if not self.options.overwrite and (present := _content(file)) is not None:
            return Counts(written=1) if present == data else Counts(kept=1)
        self.target.put(file, data)
        return Counts(written=1)

    def _file(self, row: ExportRow) -> Location:
        if not self.options.beside:
            return self.target.root / f"{self.names.key(row.image_id)}.txt"
        image = Location.from_uri(row.entry.uri)
        stem = image.name if self.names.keeps_extension(row.image_id) else split_extension(image.name)[0]
        return image.parent / f"{stem}.txt"


def _content(file: Location) -> bytes | None:
    """The content of a file; None if it does not exist."""
    if file.info() is None:
        return None
    try:
        return file.read_bytes()
    except StorageError as error:
        if error.error_class == "missing":
            return None
        raise
