"""Two runs compared: the counts equal independent ones, and the page shows them."""

import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.__main__ import app
from tests.jobs.report_run import EVIL_CAPTION, EVIL_NAME, SmallRun, make_run, unfold, write_log

NAMES = [f"{number:02}.jpg" for number in range(12)]
ALIKE = {0, 3, 7}


def other_words(number: int) -> str:
    if number in ALIKE:
        return f"a photo of {number % 5} dogs in a park"
    return f"{number % 5} dogs run over the grass" if number % 2 else "a man rides a brown horse on a beach"


def compare(*args: object) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, args)])
    return done.exit_code, done.output


@pytest.fixture
def two(tmp_path: Path) -> tuple[SmallRun, SmallRun]:
    """Two runs: one has an image that the other lacks, and a photo is broken in the other."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = make_run(tmp_path / "one", [*NAMES, "only-here.jpg"])
    two = make_run(tmp_path / "two", NAMES, broken=("05.jpg",), say=other_words)
    return one, two


def facts(one: SmallRun, two: SmallRun, *more: object) -> dict:
    code, output = compare(one.output, two.output, "--json", *more)
    assert code == 0, output
    return json.loads(output)


def test_agreement_equals_an_independent_count(two: tuple[SmallRun, SmallRun]) -> None:
    found = facts(*two)
    both = sorted(two[0].captions.keys() & two[1].captions.keys())
    pairs = [(two[0].captions[name], two[1].captions[name]) for name in both]
    assert found["shared"] == 12
    assert found["captioned_in_both"] == len(pairs) == 11
    assert found["identical"] == sum(a == b for a, b in pairs) == 3

    def overlap(a: str, b: str) -> float:
        here, there = Counter(a.split()), Counter(b.split())
        return 2 * (here & there).total() / (here.total() + there.total())

    assert found["mean_token_overlap"] == pytest.approx(sum(overlap(*pair) for pair in pairs) / len(pairs))
    assert [run["only_here"] for run in found["runs"]] == [1, 0]
    assert found["runs"][0]["only_here_examples"] == ["only-here.jpg"]


def test_cider_equals_the_reference_scorers(two: tuple[SmallRun, SmallRun]) -> None:
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider()
    both = two[0].captions.keys() & two[1].captions.keys()
    sides = [{name: [run.captions[name]] for name in both} for run in two]
    found = facts(*two)
    assert found["runs"][0]["cider_d_against_other"] == pytest.approx(100 * cider.compute_score(sides[1], sides[0])[0])
    assert found["runs"][1]["cider_d_against_other"] == pytest.approx(100 * cider.compute_score(sides[0], sides[1])[0])


def test_errors_that_differ_are_reported(two: tuple[SmallRun, SmallRun]) -> None:
    code, output = compare(two[0].output, two[1].output)
    assert code == 0
    assert "1 ok → empty: 05.jpg" in output
    assert "3 identical (27.3%)" in output
    assert "only in captions" in output or "only in one" in output


def test_the_page_shows_the_widest_disagreements_and_runs_nothing_of_theirs(tmp_path: Path) -> None:
    for side in ("one", "two"):
        (tmp_path / side).mkdir()
    names = [*NAMES, EVIL_NAME]
    one = make_run(tmp_path / "one", names)
    two = make_run(tmp_path / "two", names, say=other_words)
    page = tmp_path / "page.html"
    code, output = compare(one.output, two.output, "-o", page)
    assert code == 0, output
    text = page.read_text()
    assert "a man rides a brown horse on a beach" in text.replace("<ins>", "").replace("</ins>", "")
    assert text.count("data:image/") == 9  # where they differ
    assert EVIL_CAPTION not in text
    assert "<img src=x" not in text


def test_what_cannot_be_compared_is_refused(tmp_path: Path, two: tuple[SmallRun, SmallRun]) -> None:
    (tmp_path / "three").mkdir()
    elsewhere = make_run(tmp_path / "three", ["x.jpg", "y.jpg"])
    code, output = compare(two[0].output, elsewhere.output)
    assert code == 2
    assert "no image" in output or "share" in output
    code, output = compare(two[0].output, tmp_path / "nothing")
    assert code == 2
    assert str(tmp_path / "nothing") in output
    unfold(two[1], 1)
    code, output = compare(two[0].output, two[1].output)
    assert code == 1
    assert "not finished" in output
    assert compare(two[0].output, two[1].output, "--set", "unfinished=true")[0] == 0


def test_the_speed_is_that_of_the_run_and_not_of_a_retry_of_some_rows(two: tuple[SmallRun, SmallRun]) -> None:
    one, _ = two
    at = "2026-01-01T00:0{}:00+00:00".format
    write_log(
        one, [{"time": at(0), "event": "start"}, {"time": at(1), "event": "shards", "images": 1200, "stages": {}}]
    )
    for before, rate in ((0, 0.5), (10, 20.0)):
        one.layout.summary.write_text(json.dumps({"already_done": before, "images_per_second": 0.5, "seconds": 2}))
        assert facts(*two)["runs"][0]["images_per_second"] == pytest.approx(rate)
