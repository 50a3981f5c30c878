"""The pages of `report` and `compare` in headless Chromium."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from tests.browser import chromium, opened, until
from tests.jobs.report_run import EVIL_NAME, make_run

SIZES = [(1280, 800, "light"), (390, 844, "dark")]
NAMES = [*(f"{number:02}.jpg" for number in range(20)), EVIL_NAME]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    run = make_run(folder, NAMES, broken=("03.jpg", "04.jpg"))
    done = CliRunner().invoke(app, ["report", str(run.output), "-o", str(folder / "report.html")])
    assert done.exit_code == 0, done.output
    return (folder / "report.html").as_uri()


def count(page: Any) -> str:
    return page.locator("#count").inner_text()


@pytest.mark.parametrize(("width", "height", "scheme"), SIZES)
def test_the_gallery_is_searched_filtered_and_sorted(browser, report, width, height, scheme) -> None:
    with opened(browser, report, width=width, height=height, scheme=scheme) as page:
        page.locator("#bar").wait_for()
        assert "19 photos" in count(page)
        dogs = sum("3 dogs" in text for text in page.locator("#gallery figure").all_text_contents())
        assert dogs > 1
        page.fill("#find", "3 dogs")
        until(lambda: count(page).startswith(f"{dogs} photos"))
        page.fill("#find", "")
        page.select_option(
            "#kind", label=next(t for t in page.locator("#kind option").all_inner_texts() if "empty" in t)
        )
        page.click("#as-list")
        rows = page.locator("#list tbody tr")
        until(lambda: rows.count() == 2)
        assert "03.jpg" in rows.first.inner_text()
        page.select_option("#kind", index=0)
        page.select_option("#order", "id")
        until(lambda: rows.count() == 21)
        width_of_page = page.evaluate("document.documentElement.scrollWidth")
        assert width_of_page <= width, "the page is wider than the screen"


def test_it_is_used_by_keyboard_alone(browser, report) -> None:
    with opened(browser, report) as page:
        page.locator("#bar").wait_for()
        page.focus("#find")
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.closest('#gallery') !== null"):
                break
        page.keyboard.press("Enter")
        card = page.locator("#card[open]")
        card.wait_for()
        first = card.locator("#card-text").inner_text()
        page.keyboard.press("ArrowRight")
        until(lambda: card.locator("#card-text").inner_text() != first)
        page.keyboard.press("Escape")
        assert not page.locator("#card[open]").count()
        assert page.evaluate("document.activeElement.closest('#gallery') !== null")


def test_names_and_captions_of_the_archive_are_only_text(browser, report) -> None:
    with opened(browser, report) as page:
        page.locator("#bar").wait_for()
        page.click("#as-list")
        page.fill("#find", "onerror")
        until(lambda: page.locator("#list tbody tr").count() == 1)
        assert EVIL_NAME in page.locator("#list tbody tr").inner_text()
        assert not page.locator("#list script, #list img[src=x]").count()


def test_disagreements_are_searched(browser, tmp_path) -> None:
    for side in ("one", "two"):
        (tmp_path / side).mkdir()
    one = make_run(tmp_path / "one", NAMES)
    two = make_run(tmp_path / "two", NAMES, say=lambda number: f"a man rides horse x{number}x on a beach")
    done = CliRunner().invoke(app, ["compare", str(one.output), str(two.output), "-o", str(tmp_path / "page.html")])
    assert done.exit_code == 0, done.output
    with opened(browser, (tmp_path / "page.html").as_uri(), width=390, height=844) as page:
        page.locator("#filters").wait_for()
        page.fill("#find", "horse x7x")
        until(lambda: page.locator("figure:visible").count() == 1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_quick_and_small(browser, tmp_path) -> None:
    rng = random.Random(1)
    words = [f"word{number}" for number in range(3000)]
    names = [f"{number // 1000:03}/{rng.getrandbits(40):010x}.jpg" for number in range(100_000)]
    output = make_large_run(tmp_path, names, lambda: " ".join(rng.choices(words, k=11)))
    page_file = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", str(output), "-o", str(page_file)])
    assert done.exit_code == 0, done.output
    assert page_file.stat().st_size < 25_000_000
    begin = time.monotonic()
    with opened(browser, page_file.as_uri()) as page:
        page.locator("#bar").wait_for()
        print(f"{page_file.stat().st_size / 1e6:.1f} MB, opened in {time.monotonic() - begin:.2f} s")
        page.click("#as-list")
        assert "100,000 rows" in count(page)
        begin = time.monotonic()
        page.fill("#find", "word17 -word18")
        until(lambda: not count(page).startswith("all"))
        print(f"searched in {time.monotonic() - begin:.2f} s")


def make_large_run(folder: Path, names: list[str], say) -> Path:
    """A run with these rows, whose photos are missing."""
    from captioning.run.index import write_segment
    from captioning.run.layout import RunLayout
    from captioning.run.record import RunRecord
    from captioning.run.sources import Entry
    from captioning.run.staging import fold, write_staged
    from captioning.run.table import Row
    from captioning.storage import Location
    from tests.benchmarks.made_archive import MadeSource

    output = folder / "out"
    layout = RunLayout(Location.parse(str(output)))
    record = RunRecord(
        inputs=("made",), archive=("made",), shard_size=512, settings={}, fingerprint_parts={"weights": "a"}
    )
    record.create(layout)
    index = write_segment(layout, [MadeSource.of(len(names))], shard_size=512).commit()

    def row(entry: Entry) -> Row:
        caption = say()
        said = ((caption, -1.0),)
        fields = {"score": -1.0, "num_tokens": 12, "alternatives": said, "width": 224, "height": 224}
        return Row(
            image_id=entry.image_id,
            uri=entry.uri,
            caption=caption,
            size_bytes=entry.size_bytes,
            model="toy-0",
            **fields,
        )

    for shard in index.shards():
        write_staged(layout, shard, [row(entry) for entry in index.rows(shard)])
    fold(layout, index)
    return output
