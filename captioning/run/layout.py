"""The paths of a run's files; their content is left to the modules named here.

OUTPUT/part-00000000-00000255.parquet     the table, a file for a range of shards
OUTPUT/_run/run.json                      what was run (`record`)
OUTPUT/_run/index/                        the listing of the archive (`index`)
OUTPUT/_run/staging/shard-00000000.parquet  finished shards that are not in a part yet
OUTPUT/_run/retry/                        rows that are made again (`redo`)
OUTPUT/_run/tmp/                          files being written
OUTPUT/_run/hold.json                     the lock: which driver is at work (`lock`)
OUTPUT/_run/events.jsonl, summary.json
"""

import re
from dataclasses import dataclass

from captioning.storage import Location

#: A part's range of shards ends at a multiple of this, or at the end of its segment.
SHARDS_A_PART = 256

_PART = re.compile(r"^part-(\d{8,})-(\d{8,})\.parquet$")
_STAGED = re.compile(r"^shard-(\d{8,})\.parquet$")


def is_of_run(path: str) -> bool:
    """Whether a file at this path below an OUTPUT is the run's own, and no image or table of an archive around it."""
    return path.startswith("_run/") or _PART.match(path) is not None


@dataclass(frozen=True, slots=True)
class Shard:
    """A run of index rows: the unit of scheduling, of commit and of resume.

    `start` and `stop` are row numbers of the whole index, `stop` not included.
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
    """The shards `first` to `last` (included) that one part holds."""

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
        """The folder of all that is not the table."""
        return self.root / "_run"

    @property
    def run_json(self) -> Location:
        """The record of what was run."""
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
        """The folder of rows that are made again, until their parts are rewritten."""
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
        """The run's event log, a JSON object a line."""
        return self.run_dir / "events.jsonl"

    @property
    def summary(self) -> Location:
        """The figures of the last run."""
        return self.run_dir / "summary.json"

    @property
    def report(self) -> Location:
        """The page that `report` makes."""
        return self.run_dir / "report.html"

    def exists(self) -> bool:
        """Whether a run has begun here."""
        return self.run_json.info() is not None

    def part(self, part: PartRange) -> Location:
        """The table's file for a range of shards."""
        return self.root / part.name

    def parts(self) -> list[PartRange]:
        """The ranges of the parts that are in the root, in order."""
        matches = (_PART.match(name) for name in self.root.names())
        return sorted(PartRange(int(match[1]), int(match[2])) for match in matches if match)

    def staged(self, number: int) -> Location:
        """The staged file of a shard."""
        return self.staging_dir / f"shard-{number:08d}.parquet"

    def staged_numbers(self) -> list[int]:
        """The numbers of the shards with a staged file, in order."""
        matches = (_STAGED.match(name) for name in self.staging_dir.names())
        return sorted(int(match[1]) for match in matches if match)
