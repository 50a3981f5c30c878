import base64
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from captioning.errors import StorageError, UsageError
from captioning.storage import Location
from jobs.__main__ import app
from jobs.reporting.run import write_report
from tests.jobs.report_run import EVIL_CAPTION, EVIL_NAME, SmallRun, make_run, unfold, write_log

VOID = {"meta", "img", "br", "rect", "line", "polygon", "input"}


class Page(HTMLParser):
    """Tags, attributes and visible text of a page; raises for wrongly nested tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in VOID:
            return
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def written(run: SmallRun, **options: int) -> tuple[str, object]:
    file = run.output.parent / "page" / "report.html"
    facts = write_report(run.location, Location.parse(str(file)), **options)
    return file.read_text(encoding="utf-8"), facts


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    names = [f"photo-{number:02d}.jpg" for number in range(9)]
    return make_run(tmp_path, [*names, "broken.jpg", EVIL_NAME], broken=("broken.jpg",))


def test_every_caption_and_photo_is_on_the_page(run):
    text, facts = written(run)
    page = Page(text)
    for image_id, caption in run.captions.items():
        assert image_id in page.text
        assert caption in page.text
    pictures = page.all("img")
    assert len(pictures) == len(run.captions) == facts.photos == facts.captioned == 10
    for picture in pictures:
        data = base64.b64decode(picture["src"].removeprefix("data:image/jpeg;base64,"), validate=True)
        assert Image.open(io.BytesIO(data)).size == (80, 60)
    assert (facts.images, facts.errors, facts.missing_photos) == (11, 1, 0)
    assert facts.size_bytes == len(text.encode())


def test_nothing_from_the_archive_becomes_markup(run):
    text, _ = written(run)
    page = Page(text)
    assert [script.get("id") for script in page.all("script")] == ["data", None]
    assert not page.all("i")
    assert not page.all("b")
    assert all("onerror" not in attrs for _, attrs in page.tags)
    assert EVIL_CAPTION in page.text
    assert EVIL_NAME in page.text
    assert EVIL_CAPTION in [picture["alt"] for picture in page.all("img")]
    assert "The file is <b>empty</b> (0 bytes)." in page.text


@pytest.mark.parametrize(
    "name",
    [
        "javascript:alert(1).jpg",
        '"><svg onload=alert(1)>.jpg',
        "' onmouseover='alert(1).jpg",
        "${title} $body.jpg",
        "<!--.jpg",
        "]]><style>*{display:none}<.jpg",
    ],
)
def test_hostile_names_are_only_text(tmp_path, name):
    page = Page(written(make_run(tmp_path, [name, "fine.jpg"]))[0])
    assert name in page.text
    assert not [tag for tag, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    assert len(page.all("script")) == 2  # the page's own: rows as data, and what reads them
    assert len([tag for tag, _ in page.tags if tag == "style"]) == 1
    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert len(page.all("img")) == 2


def test_the_page_shows_no_credentials(run):
    [part] = run.output.glob("part-*.parquet")
    table = pq.read_table(part)
    uris = [f"https://host/{number}.jpg?X-Amz-Signature=s3cr3t" for number in range(table.num_rows)]
    place = table.schema.get_field_index("uri")
    pq.write_table(table.set_column(place, table.schema.field(place), [uris]), part)
    text, _ = written(run)
    assert "https://host/" in text
    assert "s3cr3t" not in text


def test_the_page_needs_nothing_else(run):
    text, _ = written(run)
    page = Page(text)
    assert not page.all("link")
    assert all(picture["src"].startswith("data:") for picture in page.all("img"))
    assert all(link["href"].startswith("#") for link in page.all("a"))
    anchors = {attrs.get("id") for _, attrs in page.tags}
    assert {link["href"][1:] for link in page.all("a")} <= anchors
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_errors_are_shown_by_class(run):
    page = Page(written(run)[0])
    assert re.search(r"empty\s*: 1", page.text)
    assert "broken.jpg" in page.text


def test_charts_are_sound(run):
    text, _ = written(run)
    charts = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    bars = [sum(1 for node in ElementTree.fromstring(chart).iter() if node.tag == "rect") for chart in charts]
    assert len(charts) >= 2
    assert all(bars)
    tips = re.findall(r"<title>[^<]*: (\d+)</title>", "".join(charts))
    assert sum(map(int, tips)) == 2 * 10


def test_most_frequent_captions_and_words(run):
    page = Page(written(run)[0])
    assert "a photo of 0 dogs in a park" in page.text
    assert re.search(r"dogs\s+9", page.text)


def test_a_large_run_is_sampled_and_shows_its_lowest_scores(run):
    text, facts = written(run, max_photos=4)
    again, _ = written(run, max_photos=4)
    assert text == again
    assert "4 of 10, drawn at random" in text
    assert 'id="least-sure"' in text
    assert facts.photos == 10  # ten lowest scores are all of them
    assert "least-sure" not in written(run, max_photos=10)[0].split("</style>")[1]


def test_no_photos_wanted(run):
    assert "0 of 10" in written(run, max_photos=0)[0]


def test_photos_that_are_gone_say_so(run):
    (run.archive / "photo-03.jpg").unlink()
    text, facts = written(run)
    assert (facts.photos, facts.missing_photos) == (9, 1)
    assert "No thumbnail." in Page(text).text


def test_photos_in_a_tar(tmp_path):
    run = make_run(tmp_path, [f"photo-{number}.jpg" for number in range(5)], tar=True)
    _, facts = written(run)
    assert (facts.photos, facts.missing_photos) == (5, 0)


def test_an_unfinished_run_is_reported_as_far_as_it_is_done(run):
    unfold(run, done=2)
    text, facts = written(run)
    assert facts.images == 8
    assert "not finished" in text


def test_a_finished_run_does_not_say_unfinished(run):
    assert "not finished" not in written(run)[0]


def test_staged_leftovers_of_a_part_are_not_counted_twice(run):
    parts = run.layout.parts()
    kept = {part: run.layout.part(part).read_bytes() for part in parts}
    unfold(run, done=2)
    for part, data in kept.items():
        run.layout.part(part).write_bytes(data)
    assert written(run)[1].images == 11


def test_speed_from_the_log(run):
    run.layout.summary.write_text(json.dumps({"steady_images_per_second": 12.5, "stages": {"fetch": 2, "model": 6.0}}))
    write_log(
        run,
        [{"time": "2026-01-02T10:00:00+00:00", "event": "start"}]
        + [{"time": f"2026-01-02T10:00:{s:02d}+00:00", "event": "shard", "images": 4} for s in range(4, 40, 4)],
    )
    page = Page(written(run)[0])
    assert "12.5" in page.text
    assert re.search(r"model\s*6 s\s*75%", page.text)
    assert page.all("polygon")


def test_a_run_without_one_caption(tmp_path):
    text, facts = written(make_run(tmp_path, ["a.jpg", "b.jpg"], broken=("a.jpg", "b.jpg")))
    assert (facts.captioned, facts.errors, facts.photos) == (0, 2, 0)
    assert "No image has a caption" in Page(text).text


def test_where_there_is_no_run(tmp_path):
    with pytest.raises(UsageError, match="no caption run"):
        write_report(Location.parse(str(tmp_path)), Location.parse(str(tmp_path / "x.html")))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(UsageError, match=r"is a training run.*report\.html"):
        write_report(Location.parse(str(tmp_path)), Location.parse(str(tmp_path / "x.html")))


def test_a_damaged_part_is_reported(run):
    [part] = run.layout.parts()
    run.layout.part(part).write_bytes(b"PAR1 no more")
    with pytest.raises(StorageError, match="damaged"):
        written(run)


def test_a_folder_instead_of_a_file_is_refused(run):
    with pytest.raises(UsageError, match="folder"):
        write_report(run.location, Location.parse(str(run.archive)))


def test_command(run):
    done = CliRunner().invoke(app, ["report", str(run.output), "--set", "max_photos=3"])
    assert done.exit_code == 0, done.output
    assert "11 images, 1 error," in done.output
    assert (run.output / "_run" / "report.html").is_file()


@pytest.mark.parametrize(
    "arguments", [["nowhere"], ["captions", "--set", "max_photos=-1"], ["captions", "--set", "x=1"]]
)
def test_wrong_usage_is_one_message(run, monkeypatch, arguments):
    monkeypatch.chdir(run.output.parent)
    done = CliRunner().invoke(app, ["report", *arguments])
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not (run.output / "_run" / "report.html").exists()
