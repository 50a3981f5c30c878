"""Messages, records and event logs contain no credentials; ordinary text is unchanged."""

from pathlib import Path

import pytest

from captioning.redaction import redacted, without_secrets
from captioning.run.events import append_event, read_events
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.sources import Entry
from captioning.run.table import Row, rows_to_table
from captioning.storage import Location

SECRET = "s3cr3t-value"


@pytest.mark.parametrize(
    "text",
    [
        f"ftp://user:{SECRET}@host/photos",
        f"https://b.s3.amazonaws.com/k.jpg?X-Amz-Expires=60&X-Amz-Signature={SECRET}&x=1",
        f"https://b.s3.amazonaws.com/k.jpg?x-amz-security-token={SECRET}",
        f"https://storage.googleapis.com/b/k.jpg?X-Goog-Signature={SECRET}",
        f"https://a.blob.core.windows.net/c/k.jpg?sv=1&sig={SECRET}",
        f"https://h/k.jpg?access_token={SECRET}#x",
        f'"password={SECRET}"',
    ],
)
def test_secrets_are_removed(text: str) -> None:
    shown = without_secrets(f"Could not read {text}: no.")
    assert SECRET not in shown
    assert "***" in shown
    assert shown.endswith("no.")


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a@b/c.jpg",
        "/photos/a=b&sig.jpg",
        "num_token=3",
        "https://h/a?page=2#x",
        "mail me: a@b.c",
        "designs=3",
    ],
)
def test_other_text_is_unchanged(text: str) -> None:
    assert without_secrets(text) == text


def test_keys_of_the_environment_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "abcdefghijklmnop")
    assert redacted({"a": ["x abcdefghijklmnop", 3, None]}) == {"a": ["x ***", 3, None]}


def test_run_json_and_event_log_hold_none_and_the_run_resumes(tmp_path: Path) -> None:
    layout = RunLayout(Location.parse(str(tmp_path)))
    given = f"ftp://user:{SECRET}@host/photos"
    record = RunRecord(
        inputs=(given,),
        archive=(given,),
        shard_size=8,
        settings={"model": f"https://h/m?token={SECRET}", "storage": {}},
        fingerprint_parts={"weights": "abc"},
    )
    record.create(layout)
    append_event(layout, "stopped", reason=f"Could not read {given}", classes={"x": 1})
    for file in tmp_path.rglob("*"):
        assert file.is_dir() or SECRET not in file.read_text()
    assert read_events(layout)[0]["classes"] == {"x": 1}
    read = RunRecord.read(layout)
    assert read == record
    read.check(layout, inputs=(given,), fingerprint_parts={"weights": "abc"}, selection={})


def test_error_rows_hold_none_and_keep_the_uri() -> None:
    uri = f"https://h/k.jpg?sig={SECRET}"
    table = rows_to_table([Row.failed(Entry("k", uri), "network", f"Could not read {uri} (reset).", model="toy")])
    assert table["error_message"].to_pylist() == ["Could not read https://h/k.jpg?sig=*** (reset)."]
    assert table["uri"].to_pylist() == [uri]
