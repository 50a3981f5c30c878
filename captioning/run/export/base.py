"""The base class of export formats, and the options of an export."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from captioning.run.export.names import Names
from captioning.run.export.table import ExportRow, Piece, RunTable
from captioning.run.export.target import Counts, Target
from captioning.storage import Location, StorageSettings

#: Rows per piece, unless a format has another number.
BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a table is exported. `storage` are the settings for reading the images."""

    errors: Literal["skip", "include"] = "skip"
    """Whether error rows are in the export, if the format allows."""
    images: Literal["copy", "link", "none"] = "copy"
    """What happens to the image files."""
    shard_size: int = 1000
    """Rows of the table per tar."""
    beside: bool = False
    """Put text files beside the images."""
    overwrite: bool = False
    """Replace files that are not from an earlier export."""
    storage: StorageSettings = field(default_factory=StorageSettings)

    def fixed(self) -> dict[str, Any]:
        """The options that must not change when an export is resumed."""
        return {key: value for key, value in asdict(self).items() if key not in ("overwrite", "storage")}


class Format:
    """One export in one format."""

    name: ClassVar[str]
    #: Rows per piece; None for a format that is written as a whole, by `finish`.
    rows_per_piece: int | None = BATCH
    #: Whether `write_piece` syncs its files to disk.
    synced: ClassVar[bool] = False

    def __init__(self, table: RunTable, place: Location, options: ExportOptions) -> None:
        self.table = table
        self.options = options
        self.target = self.target_at(place)
        self.names = Names.none()

    def target_at(self, place: Location) -> Target:
        """The target for the location that the user gave."""
        return Target(place)

    def check(self) -> None:
        """Raise `UsageError` if these options make no sense for the format."""
        return

    def check_new(self) -> None:
        """Raise `UsageError` if a new export would replace files that are not its own."""
        return

    def write_piece(self, piece: Piece, rows: Iterable[ExportRow]) -> Counts:
        """Write the rows of a piece; must be idempotent."""
        raise NotImplementedError(f"{self.name} has no pieces")

    def finish(self) -> Counts | None:
        """Write what is left when all pieces are done; the counts of an export without pieces."""
        return None

    def lines(self) -> list[str]:
        """Lines to show to the user at the end."""
        return []

    def all_rows(self) -> Iterator[ExportRow]:
        """Every row of the export: error rows only if they are included."""
        for part, pieces in self.table.pieces(BATCH):
            if self.table.version(part) is None:
                continue
            for piece in pieces:
                for row in self.table.rows(piece):
                    if not row.failed or self.options.errors == "include":
                        yield row
