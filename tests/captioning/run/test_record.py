import json
from dataclasses import replace
from pathlib import Path

import pytest

from captioning.errors import RunConflictError, UsageError
from captioning.run.events import append_event, read_events
from captioning.run.fingerprint import difference, fingerprint
from captioning.run.record import RunRecord
from tests.captioning.run.runs import layout_of


@pytest.fixture
def record() -> RunRecord:
    return RunRecord(
        inputs=("/data/photos",),
        archive=("/data/photos",),
        shard_size=64,
        settings={"decoding": {"beam_size": 3}},
        fingerprint_parts={"weights": "abc", "decoding": {"beam_size": 3, "prompt": None}},
    )


def test_the_fingerprint_is_of_values_and_not_of_their_order() -> None:
    assert fingerprint({"a": 1, "b": {"c": 2.5, "d": None}}) == fingerprint({"b": {"d": None, "c": 2.5}, "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint({"a": 1}) != fingerprint({"a": "1"})
    with pytest.raises(ValueError):
        fingerprint({"a": float("nan")})


def test_the_difference_reads_well() -> None:
    old = {"weights": "abc", "decoding": {"beam_size": 3, "prompt": None}, "size": [1, 2], "gone": True}
    new = {"weights": "abc", "decoding": {"beam_size": 5, "prompt": "a"}, "size": [1, 3], "added": {"x": 1}}
    assert difference(old, new) == [
        "added.x: (none) → 1",
        "decoding.beam_size: 3 → 5",
        'decoding.prompt: null → "a"',
        "gone: true → (none)",
        "size: [1, 2] → [1, 3]",
    ]
    assert difference(old, old) == []


def test_a_record_comes_back_as_it_was(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    assert RunRecord.read(layout) is None
    assert record.create(layout) == record
    assert RunRecord.read(layout) == record
    written = json.loads(layout.run_json.read_bytes())
    assert written["format_version"] == 1
    assert written["fingerprint"] == record.fingerprint
    assert "python" in written["versions"]


def test_the_first_of_two_drivers_writes_the_record(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    record.create(layout)
    assert replace(record, shard_size=128, created="later").create(layout) == record
    with pytest.raises(RunConflictError):
        replace(record, fingerprint_parts={"weights": "other"}).create(layout)
    assert RunRecord.read(layout) == record


def test_another_captioner_is_refused_with_the_difference(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    parts = {"weights": "abc", "decoding": {"beam_size": 5, "prompt": None}}
    with pytest.raises(RunConflictError, match=r"decoding\.beam_size: 3 → 5") as caught:
        record.check(layout, inputs=record.inputs, fingerprint_parts=parts, selection={})
    assert "weights" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_another_selection_is_refused_with_the_difference(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    replace(record, selection={"limit": 100}).create(layout)
    first = RunRecord.read(layout)
    assert first is not None
    same = {"inputs": record.inputs, "fingerprint_parts": record.fingerprint_parts}
    first.check(layout, **same, selection={"limit": 100})
    with pytest.raises(RunConflictError, match=r"--limit: 100 → \(none\)"):
        first.check(layout, **same, selection={})
    with pytest.raises(RunConflictError, match=r"--where: \(none\) → \"size_bytes > 5\""):
        first.check(layout, **same, selection={"limit": 100, "where": "size_bytes > 5"})


def test_an_archive_may_grow_but_not_be_another(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    record.create(layout)
    more = ("/data/photos", "/data/more")
    with pytest.raises(RunConflictError, match="INPUT /data/more: not in that run → given(.|\n)*pass --add"):
        record.check(layout, inputs=more, fingerprint_parts=record.fingerprint_parts, selection={})
    record.check(layout, inputs=more, fingerprint_parts=record.fingerprint_parts, selection={}, add=True)
    wider = record.extend(layout, inputs=more, archive=more, kinds=("images", "tars"))
    assert RunRecord.read(layout) == wider
    assert (wider.inputs, wider.kinds) == (more, ("images", "tars"))
    with pytest.raises(RunConflictError, match="INPUT /data/photos"):
        wider.check(layout, inputs=("/data/more",), fingerprint_parts=record.fingerprint_parts, selection={}, add=True)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"format_version": 1}', b'{"format_version": "x"}'])
def test_a_damaged_record_raises(tmp_path: Path, content: bytes) -> None:
    layout = layout_of(tmp_path)
    layout.run_json.write_bytes(content)
    with pytest.raises(UsageError, match=r"run\.json"):
        RunRecord.read(layout)


def test_a_record_of_the_future_is_refused(tmp_path: Path, record: RunRecord) -> None:
    layout = layout_of(tmp_path)
    replace(record, format_version=2).create(layout)
    with pytest.raises(UsageError, match="format version 2"):
        RunRecord.read(layout)


def test_events_are_kept_in_order_and_a_cut_line_is_passed_over(tmp_path: Path) -> None:
    layout = layout_of(tmp_path)
    assert read_events(layout) == []
    append_event(layout, "started", pid=7)
    layout.events.append_bytes(b'{"event": "cut\n')
    append_event(layout, "finished", note="é\n")
    first, second = read_events(layout)
    assert (first["event"], first["pid"]) == ("started", 7)
    assert (second["event"], second["note"]) == ("finished", "é\n")
    assert first["time"] <= second["time"]
