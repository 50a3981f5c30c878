"""Captions rows of a finished table again: the plan of images, their staged rows, and the rewritten parts.

    plan = make_plan(layout, "retry", selection)     is in force once plan.json exists
    RedoShardIO(plan, index)                         gives workers their images and stages their rows
    plan.rewrite_part(index, part)                   replaces rows of one part, under its own name

OUTPUT/_run/retry/plan.json                            which rows are captioned again, and why
OUTPUT/_run/retry/TOKEN-part-00000000-00000255.parquet   the images of one part; deleted when it is rewritten
OUTPUT/_run/retry/TOKEN-shard-00000012.parquet         their rows, one file per shard

A part is read, the rows of the plan's images are replaced by the staged ones, and it is written in one atomic
step: a reader sees each row once, either the old or the new one. (The kept columns come from the plan.) The step
is idempotent, so that a kill at any point costs a repetition and nothing else. The names of staged files contain
the plan's token: what a late worker of an earlier plan writes is never read.
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

#: Concurrent reads and deletions of files.
_PARALLEL = 16


@dataclass(frozen=True)
class RedoPlan:
    """Which rows to caption again. `images` is their number, `classes` the error classes of a retry (() for all)."""

    layout: RunLayout
    token: str
    kind: Kind
    classes: tuple[str, ...]
    images: int

    @classmethod
    def load(cls, layout: RunLayout) -> "RedoPlan | None":
        """The plan in progress, None when there is none. Raises `StorageError`."""
        where = _marker(layout)
        if where.info() is None:
            return None
        try:
            values: dict[str, Any] = json.loads(where.read_bytes())
            return cls(layout, values["token"], values["kind"], tuple(values["classes"]), values["images"])
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                "storage",
                f"{where} is damaged ({error}). Delete it, then run the same command again: the table is complete.",
            ) from error

    def parts(self) -> list[PartRange]:
        """The parts that are not rewritten yet, in order."""
        found = (_PART.match(name) for name in self.layout.retry_dir.names())
        return sorted(PartRange(int(m[2]), int(m[3])) for m in found if m and m[1] == self.token)

    def staged(self) -> set[int]:
        """The numbers of the shards whose rows are staged."""
        found = (_SHARD.match(name) for name in self.layout.retry_dir.names())
        return {int(m[2]) for m in found if m and m[1] == self.token}

    def selected(self, part: PartRange) -> pa.Table:
        """The images of one part to caption again: `shard`, and the columns of the index. Raises `StorageError`."""
        return from_parquet(self.part_file(part).read_bytes())

    def part_file(self, part: PartRange) -> Location:
        """The file with the images of one part."""
        return self.layout.retry_dir / f"{self.token}-{part.name}"

    def shard_file(self, shard: int) -> Location:
        """The staged file of one shard."""
        return self.layout.retry_dir / f"{self.token}-shard-{shard:08d}.parquet"

    def rewrite_part(self, index: Index, part: PartRange) -> list[int]:
        """Rewrite one part if all its rows are staged; returns the shards that are not, else [].

        Deletes damaged staged files, whose shards are then missing. Raises `StorageError`.
        """
        if self.part_file(part).info() is None:
            return []  # done by a driver that was taken for dead
        selected = self.selected(part)
        shards = pc.unique(selected["shard"]).to_pylist()
        if self.layout.part(part).info() is not None:
            present = self.staged()
            ids = {shard: selected.filter(pc.equal(selected["shard"], shard))["image_id"] for shard in shards}
            with ThreadPoolExecutor(_PARALLEL) as pool:
                tables = list(
                    pool.map(lambda shard: self._read(shard, ids[shard]) if shard in present else None, shards)
                )
            missing = [shard for shard, table in zip(shards, tables, strict=True) if table is None]
            if missing:
                return missing
            new = pa.concat_tables([table for table in tables if table is not None])
            if self.kind == "refresh":
                # A changed image that has been deleted since keeps its row.
                new = new.filter(pc.not_equal(pc.fill_null(new["error_class"], ""), "missing"))
            self._rewrite(part, index, new, selected)
        # If a user deleted the part, all of its rows are captioned again, from an index with the current files.
        index.update_part(part, selected.drop_columns(["shard"]))
        self.part_file(part).delete()
        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(Location.delete, [self.shard_file(shard) for shard in shards]))
        return []

    def close(self) -> None:
        """Delete the plan once all of its parts are rewritten."""
        _marker(self.layout).delete()
        _sweep(self.layout)

    def _rewrite(self, part: PartRange, index: Index, new: pa.Table, selected: pa.Table) -> None:
        """Replace the rows of a part that have the ids of `new`."""
        kept = kept_of(selected, index.kept_schema).take(
            pc.index_in(new["image_id"], selected["image_id"].combine_chunks())
        )
        for name in kept.schema.names:
            new = new.append_column(name, kept[name])
        changed = replace_rows(read_part(self.layout, part), new)
        self.layout.part(part).write_bytes(to_parquet(changed), temp=self.layout.tmp_dir)

    def _read(self, shard: int, ids: pa.ChunkedArray) -> pa.Table | None:
        """The staged rows of a shard; None if its ids are not `ids`, and then the file is deleted."""
        where = self.shard_file(shard)
        try:
            table = from_parquet(where.read_bytes())
        except StorageError as error:
            if error.error_class == "missing":
                return None
            raise
        except (pa.ArrowInvalid, OSError):
            table = None
        valid = table is not None and table.schema.equals(SCHEMA)
        if not valid or sorted(table["image_id"].to_pylist()) != sorted(ids.to_pylist()):
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
    """Write a plan for the selected images of each part (see `RedoPlan.selected`); None if there are none.

    There must be no plan in progress. Raises `StorageError`.
    """
    assert _marker(layout).info() is None, "one plan at a time"
    _sweep(layout)
    plan = RedoPlan(layout, secrets.token_hex(4), kind, tuple(classes), 0)
    images = 0
    for part, selected in selection:
        images += selected.num_rows
        if selected.num_rows:
            data = to_parquet(selected.sort_by("shard"), row_group_size=1024)
            plan.part_file(part).write_bytes(data, temp=layout.tmp_dir)
    if not images:
        return None
    plan = replace(plan, images=images)
    values = {name: value for name, value in asdict(plan).items() if name != "layout"}
    _marker(layout).write_bytes((json.dumps(values, indent=1) + "\n").encode(), temp=layout.tmp_dir)
    return plan


@dataclass(frozen=True)
class RedoShardIO:
    """Rows captioned again: reads the plan's images of a shard, and stages their rows apart."""

    plan: RedoPlan
    index: Index

    def entries(self, shard: int) -> list[Entry]:
        """The images of the shard to caption again."""
        self.index.require_reachable()
        where = self.plan.part_file(self.index.range_of(shard))
        with storage_errors(where.uri), where.open_read() as file:
            table = pq.read_table(io.BytesIO(file.read()), filters=[("shard", "=", shard)])
        return table_to_entries(table)

    def stage(self, shard: int, rows: Sequence[Row]) -> None:
        """Stage their rows until the part is rewritten."""
        self.index.require_reachable()
        self.plan.shard_file(shard).write_bytes(to_parquet(rows_to_table(rows)), temp=self.plan.layout.tmp_dir)


def delete_leftovers(layout: RunLayout) -> None:
    """Delete the files of a plan that was killed before it was in force. Does nothing while there is a plan."""
    if _marker(layout).info() is None:
        _sweep(layout)


def _marker(layout: RunLayout) -> Location:
    return layout.retry_dir / "plan.json"


def _sweep(layout: RunLayout) -> None:
    """Delete the files of plans that are done, or that were killed before they were in force."""
    for name in layout.retry_dir.names():
        if _PART.match(name) or _SHARD.match(name):
            (layout.retry_dir / name).delete()
