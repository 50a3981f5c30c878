"""Rows of a finished table made again: which ones (the plan), what came out (staged), and into the parts with it.

    plan = make_plan(layout, "retry", selection)     counts once plan.json exists
    RedoBook(plan, index)                            what workers are given, where they stage
    plan.settle(index, part)                         rewrites one part, under its own name

OUTPUT/_run/retry/plan.json                            what is made again, and why
OUTPUT/_run/retry/TOKEN-part-00000000-00000255.parquet   the images of one part; gone when it is rewritten
OUTPUT/_run/retry/TOKEN-shard-00000012.parquet         their rows, a file a shard

A part is read, the rows of the plan's images are replaced by the staged ones, and it is written
in one atomic step: a reader sees each row once, the old one or the new one. (The columns kept of
the archive come from the plan.) Doing so twice gives the same part, so a kill anywhere costs a
repetition and nothing else. Staged files carry the plan's token: a late worker of an earlier plan
writes what nobody reads. Knows nothing of how captions are made.
"""

import io
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from captioning.errors import StorageError
from captioning.run.index import Index
from captioning.run.layout import PartRange, RunLayout
from captioning.run.segment import kept_of, replace_rows, table_to_entries
from captioning.run.sources import Entry
from captioning.run.table import SCHEMA, Row, from_parquet, read_part, rows_to_table, to_parquet
from captioning.storage import Location
from captioning.storage_errors import storage_errors

Kind = Literal["retry", "refresh"]

_PART = re.compile(r"^([0-9a-f]{8})-part-(\d{8,})-(\d{8,})\.parquet$")
_SHARD = re.compile(r"^([0-9a-f]{8})-shard-(\d{8,})\.parquet$")

#: Files are read and deleted this many at a time.
_PARALLEL = 16


@dataclass(frozen=True)
class RedoPlan:
    """What is to be made again. `images` counts them, `classes` are the error classes of a retry (() for all)."""

    layout: RunLayout
    token: str
    kind: Kind
    classes: tuple[str, ...]
    images: int

    @classmethod
    def load(cls, layout: RunLayout) -> "RedoPlan | None":
        """The plan that is not done yet, None when there is none. Raises `StorageError`."""
        where = _marker(layout)
        if where.info() is None:
            return None
        try:
            values: dict[str, Any] = json.loads(where.read_bytes())
            return cls(layout, values["token"], values["kind"], tuple(values["classes"]), values["images"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                "storage",
                f"{where} is damaged ({error}). Remove it: the table is whole, only what was to be retried waits.",
            ) from error

    def parts(self) -> list[PartRange]:
        """The parts that are not rewritten yet, in order."""
        found = (_PART.match(name) for name in self.layout.retry_dir.names())
        return sorted(PartRange(int(m[2]), int(m[3])) for m in found if m and m[1] == self.token)

    def staged(self) -> set[int]:
        """The shards whose rows are staged."""
        found = (_SHARD.match(name) for name in self.layout.retry_dir.names())
        return {int(m[2]) for m in found if m and m[1] == self.token}

    def chosen(self, part: PartRange) -> pa.Table:
        """The images of one part: their `shard`, and the columns of the index. Raises `StorageError`."""
        return from_parquet(self.part_file(part).read_bytes())

    def part_file(self, part: PartRange) -> Location:
        """Where the images of one part are listed."""
        return self.layout.retry_dir / f"{self.token}-{part.name}"

    def shard_file(self, shard: int) -> Location:
        """Where the rows of one shard are staged."""
        return self.layout.retry_dir / f"{self.token}-shard-{shard:08d}.parquet"

    def settle(self, index: Index, part: PartRange) -> list[int]:
        """Rewrite one part if all its rows are staged; else the shards that are still to be done.

        A staged file that is damaged is deleted, so that its shard is to be done. Raises `StorageError`.
        """
        if self.part_file(part).info() is None:
            return []  # a driver that was thought dead has done it
        chosen = self.chosen(part)
        shards = pc.unique(chosen["shard"]).to_pylist()
        if self.layout.part(part).info() is not None:
            present = self.staged()
            ids = {shard: chosen.filter(pc.equal(chosen["shard"], shard))["image_id"] for shard in shards}
            with ThreadPoolExecutor(_PARALLEL) as pool:
                tables = list(
                    pool.map(lambda shard: self._read(shard, ids[shard]) if shard in present else None, shards)
                )
            missing = [shard for shard, table in zip(shards, tables, strict=True) if table is None]
            if missing:
                return missing
            new = pa.concat_tables([table for table in tables if table is not None])
            if self.kind == "refresh":
                # A changed image that has gone since is one that is gone: its row stays.
                new = new.filter(pc.not_equal(pc.fill_null(new["error_class"], ""), "missing"))
            self._rewrite(part, index, new, chosen)
        # Where somebody deleted the part, all of its rows are made again, from an index that knows the present files.
        index.amend(part, chosen.drop_columns(["shard"]))
        self.part_file(part).delete()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(Location.delete, [self.shard_file(shard) for shard in shards]))
        return []

    def close(self) -> None:
        """Forget the plan, all of whose parts are rewritten."""
        _marker(self.layout).delete()
        _sweep(self.layout)

    def _rewrite(self, part: PartRange, index: Index, new: pa.Table, chosen: pa.Table) -> None:
        """Put the rows of `new` in the place of those with their ids."""
        kept = kept_of(chosen, index.kept_schema).take(
            pc.index_in(new["image_id"], chosen["image_id"].combine_chunks())
        )
        for name in kept.schema.names:
            new = new.append_column(name, kept[name])
        changed = replace_rows(read_part(self.layout, part), new)
        self.layout.part(part).write_bytes(to_parquet(changed), temp=self.layout.tmp_dir)

    def _read(self, shard: int, ids: pa.ChunkedArray) -> pa.Table | None:
        """The staged rows of a shard; None, and the file deleted, when they are not those of `ids`."""
        where = self.shard_file(shard)
        try:
            table = from_parquet(where.read_bytes())
        except StorageError as error:
            if error.error_class == "missing":
                return None
            raise
        except (pa.ArrowInvalid, OSError):
            table = None
        right = table is not None and table.schema.equals(SCHEMA)
        if not right or sorted(table["image_id"].to_pylist()) != sorted(ids.to_pylist()):
            where.delete()
            return None
        return table


def make_plan(
    layout: RunLayout,
    kind: Kind,
    selection: Iterable[tuple[PartRange, pa.Table]],
    *,
    classes: Sequence[str] = (),
) -> RedoPlan | None:
    """Write down what is to be made again, part by part as `RedoPlan.chosen`; None when it is nothing.

    There must be no plan yet. Raises `StorageError`.
    """
    assert _marker(layout).info() is None, "one plan at a time"
    _sweep(layout)
    plan = RedoPlan(layout, secrets.token_hex(4), kind, tuple(classes), 0)
    images = 0
    for part, chosen in selection:
        images += chosen.num_rows
        if chosen.num_rows:
            data = to_parquet(chosen.sort_by("shard"), row_group_size=1024)
            plan.part_file(part).write_bytes(data, temp=layout.tmp_dir)
    if not images:
        return None
    plan = replace(plan, images=images)
    values = {name: value for name, value in asdict(plan).items() if name != "layout"}
    _marker(layout).write_bytes((json.dumps(values, indent=1) + "\n").encode(), temp=layout.tmp_dir)
    return plan


@dataclass(frozen=True)
class RedoBook:
    """What workers are given when rows are made again: the plan's images of a shard, staged apart."""

    plan: RedoPlan
    index: Index

    def entries(self, shard: int) -> list[Entry]:
        """The images of the shard that are made again."""
        self.index.require_here()
        where = self.plan.part_file(self.index.range_of(shard))
        with storage_errors(where.uri), where.open_read() as file:
            table = pq.read_table(io.BytesIO(file.read()), filters=[("shard", "=", shard)])
        return table_to_entries(table)

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Keep their rows until the part is rewritten."""
        self.index.require_here()
        self.plan.shard_file(shard).write_bytes(to_parquet(rows_to_table(rows)), temp=self.plan.layout.tmp_dir)


def forget_leftovers(layout: RunLayout) -> None:
    """Delete what a plan left that was killed before it counted. Nothing while there is a plan."""
    if _marker(layout).info() is None:
        _sweep(layout)


def _marker(layout: RunLayout) -> Location:
    return layout.retry_dir / "plan.json"


def _sweep(layout: RunLayout) -> None:
    """Delete what plans left that are done, or that were killed before they counted."""
    for name in layout.retry_dir.names():
        if _PART.match(name) or _SHARD.match(name):
            (layout.retry_dir / name).delete()
