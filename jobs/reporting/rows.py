"""Samples rows uniformly from a long table in one pass, and packs them compactly into a page.

Memory is bounded by the size of the sample.
"""

import base64
import gzip
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from captioning.redaction import without_secrets

#: The columns that are kept of a row.
COLUMNS = ("image_id", "caption", "score", "status", "error_class", "error_message")


class RowSample:
    """A uniform random sample of `limit` of the added rows, or all of them if there are no more."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        # Its own generator: the sample does not depend on other random draws.
        self._random = np.random.default_rng(1)
        self._pieces: list[pa.Table] = []
        self._keys: list[NDArray[np.float64]] = []
        self._held = 0
        self._bound = np.inf

    def add(self, rows: pa.Table) -> None:
        """Offer rows, which have `COLUMNS`, to the sample."""
        keys = self._random.random(rows.num_rows)
        low = np.flatnonzero(keys < self._bound)
        if not self._limit or not len(low):
            return
        self._pieces.append(rows.select(COLUMNS).take(pa.array(low)))
        self._keys.append(keys[low])
        self._held += len(low)
        if self._held > 2 * self._limit:
            self._shrink()

    def table(self) -> pa.Table:
        """The sampled rows, in the order in which they were added."""
        if self._held > self._limit:
            self._shrink()
        empty = pa.schema([(name, pa.float32() if name == "score" else pa.string()) for name in COLUMNS]).empty_table()
        return pa.concat_tables([empty, *self._pieces]).combine_chunks()

    def _shrink(self) -> None:
        keys = np.concatenate(self._keys)
        kept = np.sort(np.argpartition(keys, self._limit - 1)[: self._limit])
        self._pieces = [pa.concat_tables(self._pieces).take(pa.array(kept)).combine_chunks()]
        self._keys, self._held = [keys[kept]], len(kept)
        self._bound = float(keys[kept].max())


def pack(columns: dict[str, Any]) -> str:
    """Plain values as base64 of gzipped JSON, which cannot contain markup. The same values give the same text."""
    data = json.dumps(columns, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode()
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode()


def row_columns(rows: pa.Table) -> dict[str, Any]:
    """The rows as plain lists, one item per row, for the page's script.

    `ids`; `texts`, the caption or the error's message; `scores` in thousandths, None for an error;
    `errors`, an index into `classes`, -1 for a caption. Credentials are removed.
    """
    good = pc.equal(rows["status"], "ok")
    text = pc.if_else(good, rows["caption"], rows["error_message"])
    scores = [
        None if value is None or not math.isfinite(value) else round(1000 * value)
        for value in rows["score"].to_pylist()
    ]
    names = pc.if_else(good, None, pc.fill_null(rows["error_class"], "unknown")).to_pylist()
    classes = sorted({name for name in names if name is not None})
    places = {name: place for place, name in enumerate(classes)}
    return {
        "ids": redact_texts(rows["image_id"].to_pylist()),
        "texts": redact_texts([value or "" for value in text.to_pylist()]),
        "scores": scores,
        "errors": [-1 if name is None else places[name] for name in names],
        "classes": redact_texts(classes),
    }


def redact_texts(texts: Sequence[str]) -> list[str]:
    """The texts without credentials."""
    # Secrets do not span lines and are rare, so check all texts at once first.
    joined = "\n".join(texts)
    return list(texts) if without_secrets(joined) == joined else [without_secrets(text) for text in texts]
