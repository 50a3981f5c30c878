"""Settings of the archive: the columns of Parquet and Arrow files."""

from captioning.config import settings


@settings
class InputSettings:
    """How Parquet and Arrow files are read. Other kinds of archives need none of it."""

    image_column: str | None = None
    """The column of image bytes, or of paths or URIs of images; not needed where only one can be meant."""

    id_column: str | None = None
    """The column of image ids; without one an image's id is FILE#ROW."""

    keep_columns: tuple[str, ...] = ()
    """Columns that the caption table takes over, such as [width, license]; null for images of other INPUTs."""

    def __post_init__(self) -> None:
        repeated = {name for name in self.keep_columns if self.keep_columns.count(name) > 1}
        if repeated:
            raise ValueError(f"input.keep_columns names {sorted(repeated)[0]!r} twice")
