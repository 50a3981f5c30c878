"""What a format is to the exporter, and what a person can choose about an export."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from captioning.run.export.names import Names
from captioning.run.export.table import ExportRow, Piece, RunTable
from captioning.run.export.target import Counts, Target
from captioning.storage import Location, StorageSettings

#: Rows that are looked at together where nothing else says how many.
BATCH = 4096


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """How a table is exported. `storage` is how the images are reached."""

    errors: Literal["skip", "include"] = "skip"
    """Whether error rows are in the export, where the format has a place for them."""
    images: Literal["copy", "link", "none"] = "copy"
    """What becomes of the images themselves."""
    shard_size: int = 1000
    """Rows of the table a tar."""
    beside: bool = False
    """Put sidecars beside the images."""
    overwrite: bool = False
    """Replace files that are of no earlier export."""
    storage: StorageSettings = field(default_factory=StorageSettings)

    def lasting(self) -> dict[str, Any]:
        """The choices that an export which goes on must share with its beginning."""
        return {key: value for key, value in asdict(self).items() if key not in ("overwrite", "storage")}


class Format:
    """One export in one format. Made when the target is known and the table is there."""

    name: ClassVar[str]
    #: Rows a piece; None for a format that is written as a whole, by `finish`.
    rows_a_piece: int | None = BATCH
    #: Whether what `write_piece` writes is on the disk when it returns.
    synced: ClassVar[bool] = False

    def __init__(self, table: RunTable, place: Location, options: ExportOptions) -> None:
        self.table = table
        self.options = options
        self.target = self.target_at(place)
        self.names = Names.none()

    def target_at(self, place: Location) -> Target:
        """The target of an export to what a person gave as its place."""
        return Target(place)

    def check(self) -> None:
        """Raise `UsageError` where these options make no sense for the format."""
        return

    def check_new(self) -> None:
        """Raise `UsageError` where a new export would replace files that are not its own."""
        return

    def write_piece(self, piece: Piece, rows: Iterable[ExportRow]) -> Counts:
        """Write the rows of a piece; twice makes no difference."""
        raise NotImplementedError(f"{self.name} has no pieces")

    def finish(self) -> Counts | None:
        """Write what is left when all pieces are done; the counts of the export if they were not told before."""
        return None

    def lines(self) -> list[str]:
        """What a person should know at the end, a line each."""
        return []

    def all_rows(self) -> Iterator[ExportRow]:
        """Every row that is in the export: error rows only if they were asked for."""
        for part, pieces in self.table.pieces(BATCH):
            if self.table.version(part) is None:
                continue
            for piece in pieces:
                for row in self.table.rows(piece):
                    if not row.failed or self.options.errors == "include":
                        yield row
