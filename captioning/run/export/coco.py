"""`coco`: one JSON file of images and captions, in the format of COCO's tools."""

import json
from collections.abc import Iterator
from typing import IO, Any

from captioning.errors import UsageError
from captioning.run.export.base import Format
from captioning.run.export.names import STATE_FOLDER
from captioning.run.export.table import ExportRow
from captioning.run.export.target import Counts, Target
from captioning.storage import Location

FILE_NAME = "captions.json"


class CocoFormat(Format):
    """`images` (id, file_name, width, height) and `annotations` (id, image_id, caption), streamed.

    COCO's ids are numbers: that of an image is its row in the index, and `key` is its image id.
    """

    name = "coco"
    rows_per_piece = None

    def target_at(self, place: Location) -> Target:
        """A file that ends in `.json`, or `captions.json` in a folder."""
        is_file = place.name.lower().endswith(".json") and not place.is_dir()
        self.file = place if is_file else place / FILE_NAME
        return Target(self.file.parent, self.file.parent / STATE_FOLDER / self.file.name)

    def check_new(self) -> None:
        """Refuse to replace an existing file."""
        if self.file.info() is not None:
            raise UsageError(f"{self.file} already exists: --overwrite replaces it.")

    def finish(self) -> Counts:
        """Write the file in one step."""
        with self.target.stream(self.file) as out:
            out.write(b'{"info": ' + _json({"description": "Captions made with Captioning", "version": "1.0"}))
            out.write(b', "licenses": [],\n"images": [')
            images = _write_list(out, (self._image(row) for row in self.all_rows()))
            out.write(b'],\n"annotations": [')
            rows = (row for row in self.all_rows() if not row.failed)
            _write_list(out, (self._annotation(number, row) for number, row in enumerate(rows, 1)))
            out.write(b"]}\n")
        return Counts(written=images)

    def _image(self, row: ExportRow) -> dict[str, Any]:
        given = row.row
        size = {"width": given["width"] or 0, "height": given["height"] or 0}
        name = self.names.image(row.image_id, row.entry.uri)
        return {"id": row.number, "file_name": name, "key": row.image_id} | size

    def _annotation(self, number: int, row: ExportRow) -> dict[str, Any]:
        return {
            "id": number,
            "image_id": row.number,
            "caption": row.row["caption"],
            "score": row.row["score"],
        }


def _write_list(out: IO[bytes], items: Iterator[dict[str, Any]]) -> int:
    count = 0
    for item in items:
        out.write((b",\n" if count else b"\n") + _json(item))
        count += 1
    return count


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()
