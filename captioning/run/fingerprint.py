"""Fingerprints of runs: a hash over plain values, and a readable difference between two sets of values."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_ABSENT = "(none)"


def fingerprint(parts: Mapping[str, Any]) -> str:
    """A hash of JSON-like values as 32 hexadecimal digits, independent of the order of keys."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The values that differ, one line each: `key.path: old → new`, sorted by key."""
    return [f"{key}: {before} → {after}" for key, before, after in differences(old, new)]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The values that differ, each (`key.path`, old, new) as text, sorted by key."""
    before, after = _flat(old), _flat(new)
    keys = sorted({key for key in (*before, *after) if before.get(key, _ABSENT) != after.get(key, _ABSENT)})
    return [(key, before.get(key, _ABSENT), after.get(key, _ABSENT)) for key in keys]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = json.dumps(value, ensure_ascii=False, sort_keys=True)
    return found
