"""Settings of the archive: the columns of Parquet and Arrow files."""

from captioning.config import settings


@settings
class InputSettings:
    """How Parquet and Arrow files are read. Other kinds of archives need none of it."""

    image_column: str | None = None
    """The column of image bytes, or of paths or URIs of images; not needed if there is only one candidate."""

    id_column: str | None = None
    """The column of image ids; by default the id is FILE#ROW."""

    keep_columns: tuple[str, ...] = ()
    """Columns to copy to the caption table, such as [width, license]; null for images of other INPUTs."""

    def __post_init__(self) -> None:
        repeated = {name for name in self.keep_columns if self.keep_columns.count(name) > 1}
        if repeated:
            raise ValueError(f"input.keep_columns names {sorted(repeated)[0]!r} twice")
