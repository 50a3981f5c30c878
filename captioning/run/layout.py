"""The paths of a run's files; their content is left to the modules named here.

OUTPUT/part-00000000-00000255.parquet     the table, one file per range of shards (`table`)
OUTPUT/_run/run.json                      inputs, settings and versions (`record`)
OUTPUT/_run/index/                        the listing of the archive (`index`)
OUTPUT/_run/staging/shard-00000000.parquet  finished shards that are not in a part yet (`staging`)
OUTPUT/_run/retry/                        rows that are captioned again (`redo`)
OUTPUT/_run/tmp/                          files being written
OUTPUT/_run/hold.json                     the lock: which driver is at work (`lock`)
OUTPUT/_run/events.jsonl, summary.json
"""

import re
from dataclasses import dataclass

from captioning.storage import Location

#: A part's range of shards ends at a multiple of this, or at the end of its segment.
SHARDS_PER_PART = 256

_PART = re.compile(r"^part-(\d{8,})-(\d{8,})\.parquet$")
_STAGED = re.compile(r"^shard-(\d{8,})\.parquet$")


def is_run_file(path: str) -> bool:
    """Whether a file at this path below an OUTPUT belongs to the run, not to an archive in the same folder."""
    return path.startswith("_run/") or _PART.match(path) is not None


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive index rows: the unit of scheduling, of commit and of resume.

    `start` and `stop` (exclusive) are row numbers of the whole index.
    """

    number: int
    segment: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """The number of images in the shard."""
        return self.stop - self.start


@dataclass(frozen=True, order=True)
class PartRange:
    """The shards `first` to `last` (inclusive) of one part."""

    first: int
    last: int

    @property
    def numbers(self) -> range:
        """The numbers of the shards in the part."""
        return range(self.first, self.last + 1)

    @property
    def name(self) -> str:
        """The part's file name."""
        return f"part-{self.first:08d}-{self.last:08d}.parquet"


@dataclass(frozen=True)
class RunLayout:
    """The files of the run whose OUTPUT is `root`."""

    root: Location

    @property
    def run_dir(self) -> Location:
        """The folder of everything but the table."""
        return self.root / "_run"

    @property
    def run_json(self) -> Location:
        """The record of inputs, settings and versions."""
        return self.run_dir / "run.json"

    @property
    def index_dir(self) -> Location:
        """The folder of the index."""
        return self.run_dir / "index"

    @property
    def staging_dir(self) -> Location:
        """The folder of finished shards that are not folded yet."""
        return self.run_dir / "staging"

    @property
    def retry_dir(self) -> Location:
        """The folder of rows captioned again whose parts are not rewritten yet."""
        return self.run_dir / "retry"

    @property
    def tmp_dir(self) -> Location:
        """The folder of files being written."""
        return self.run_dir / "tmp"

    @property
    def lock_file(self) -> Location:
        """The lock, which names the driver at work."""
        return self.run_dir / "hold.json"

    @property
    def events(self) -> Location:
        """The run's event log, one JSON object per line."""
        return self.run_dir / "events.jsonl"

    @property
    def summary(self) -> Location:
        """The figures of the last run."""
        return self.run_dir / "summary.json"

    @property
    def report(self) -> Location:
        """The HTML page that `report` writes."""
        return self.run_dir / "report.html"

    def exists(self) -> bool:
        """Whether there is a run in OUTPUT."""
        return self.run_json.info() is not None

    def part(self, part: PartRange) -> Location:
        """The table's file for a range of shards."""
        return self.root / part.name

    def parts(self) -> list[PartRange]:
        """The ranges of the existing parts, in order."""
        matches = (_PART.match(name) for name in self.root.names())
        return sorted(PartRange(int(match[1]), int(match[2])) for match in matches if match)

    def staged(self, number: int) -> Location:
        """The staged file of a shard."""
        return self.staging_dir / f"shard-{number:08d}.parquet"

    def staged_numbers(self) -> list[int]:
        """The numbers of the shards with a staged file, in order."""
        matches = (_STAGED.match(name) for name in self.staging_dir.names())
        return sorted(int(match[1]) for match in matches if match)
