"""`webdataset`: tars with each image, its caption and its row, for streaming into training."""

import io
import json
import tarfile
from collections.abc import Iterable
from typing import Any

from captioning.errors import UsageError
from captioning.run.export.base import Format
from captioning.run.export.images import fetch_ahead
from captioning.run.export.names import extension_of
from captioning.run.export.table import ExportRow, Piece
from captioning.run.export.target import Counts
from captioning.storage import Location


class WebDatasetFormat(Format):
    """`captions-000000.tar` …: KEY.jpg (or another extension), KEY.txt with the caption, KEY.json with the row.

    A tar has the images of `shard_size` rows of the table, fewer if some are left out. KEY is the image's id without
    its extension, so that keys from the tars of an archive are kept.
    """

    name = "webdataset"
    synced = True

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows_per_piece = self.options.shard_size
        self._tars = 0

    def check(self) -> None:
        """Refuse to leave out or link the images."""
        if self.options.images != "copy":
            raise UsageError(
                f"--images {self.options.images} does not apply to webdataset: its tars contain the images."
            )

    def check_new(self) -> None:
        """Refuse a folder with tars of these names, which may be from another export."""
        for name in self.target.root.names():
            if name.startswith("captions-") and name.endswith(".tar"):
                raise UsageError(
                    f"{self.target.root / name} is not from an export of this run. Choose another folder, or pass "
                    "--overwrite to write into this one."
                )

    def write_piece(self, piece: Piece, rows: Iterable[ExportRow]) -> Counts:
        """Write one tar."""
        errors = [0]
        counts = Counts()
        wanted = self._wanted(rows, errors)
        with (
            self.target.stream(self._tar(piece.number)) as file,
            tarfile.open(fileobj=file, mode="w|", format=tarfile.GNU_FORMAT) as tar,
        ):
            for row, data in fetch_ahead(wanted, self.options.storage):
                if isinstance(data, str):
                    counts += Counts(missing=1)
                    continue
                key = _key(self.names.key(row.image_id))
                _add(tar, key + extension_of(row.image_id, row.entry.uri), data)
                if not row.failed:
                    _add(tar, f"{key}.txt", row.row["caption"].encode())
                _add(tar, f"{key}.json", json.dumps(row.row, ensure_ascii=False, default=str).encode())
                counts += Counts(written=1)
        return counts + Counts(errors=errors[0])

    def finish(self) -> None:
        """Count the tars."""
        self._tars = sum(len(pieces) for _, pieces in self.table.pieces(self.options.shard_size))

    def lines(self) -> list[str]:
        """How to load the tars."""
        last = max(0, self._tars - 1)
        return [f'webdataset.WebDataset("{self.target.root}/captions-{{000000..{last:06d}}}.tar") reads them.']

    def _tar(self, number: int) -> Location:
        return self.target.root / f"captions-{number:06d}.tar"

    def _wanted(self, rows: Iterable[ExportRow], errors: list[int]) -> Iterable[ExportRow]:
        for row in rows:
            if row.failed and self.options.errors == "skip":
                errors[0] += 1
            else:
                yield row


def _key(name: str) -> str:
    """The name as a key: dots of its last component, where readers would end the key, are escaped."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.replace(".", "%2E")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # Without time and owner, so that the same export gives the same bytes.
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    tar.addfile(info, io.BytesIO(data))
