"""What the benchmark makes of its timings. The programs that it times are not run here."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from captioning.errors import InputError
from tests.benchmarks.decoding_results import decoding_ratios, make_decoding_table
from tests.benchmarks.photos import collect_photos
from tests.benchmarks.results import (
    conditions,
    make_table,
    make_training_table,
    ratios,
    steady_rate,
    summarise,
    training_costs,
)
from tests.benchmarks.scale import TITLES, make_scale_tables, measure_scale, scale_figures
from tests.benchmarks.scale_steps import take_step
from tests.benchmarks.training import make_shards, measure_worker


def run(number: int, seconds: float, steady: float | None, same: int = 100) -> dict[str, Any]:
    return {
        "round": number,
        "images": 100,
        "seconds": seconds,
        "steady_images_per_second": steady,
        "peak_bytes": 2**30,
        "same_captions": same,
    }


RUNS = {
    "job": [run(0, 10, 20.0), run(1, 40, 5.0), run(2, 12.5, 16.0)],
    "ray_tuned": [run(0, 25, 8.0), run(1, 25, 8.0, same=99), run(2, 25, 8.0)],
    "dataloader": [run(0, 50, None), run(1, 50, 4.0), run(2, 50, 4.0)],
}
CEILINGS = [
    {"cpu_seconds_an_image": {"fetch": 0.0, "decode": 0.05, "model": cost, "write": 0.0}} for cost in (0.1, 0.15, 0.9)
]
DECODING = [
    {"case": case, "round": number, "images": 32, "seconds": seconds, "same_as_generate": 31 + number}
    for case, seconds in (
        ("gpt2-small", {"ours": 4.0, "generate": 8.0, "single": 200.0, "floor": 3.0}),
        ("4x256", {"ours": 1.0, "generate": 3.0, "single": 40.0, "floor": 0.9}),
        ("lstm", {"ours": 0.2, "floor": 0.1}),
    )
    for number in range(2)
]


def turn(case: str, workers: int, seconds: float, memory: float, cpu: float = 12.0) -> dict[str, Any]:
    ways = {"seconds": seconds, "memory_seconds": memory, "cpu_seconds": cpu, "cpu_memory_seconds": 10.0}
    return {"case": case, "workers": workers, "images": 100, **ways}


TRAINING = [
    *(turn("cached", 1, 10.0 * slow, 8.0 * slow) for slow in (1, 2, 3)),
    *(turn("cached", 2, seconds, 4.0) for seconds in (4.0, 4.4, 9.0)),
    turn("streaming", 2, 4.12, 4.0, cpu=10.3),
]


def test_the_steady_rate_leaves_the_first_batch_out() -> None:
    assert steady_rate([100.0] * 32 + [104.0] * 32 + [102.0] * 32) == 16.0
    assert steady_rate([100.0] * 32) is None


def test_ratios_are_of_medians() -> None:
    summary = summarise(RUNS, CEILINGS, cores=2)
    assert summary["job"]["images_per_second"] == 8
    assert summary["ceiling"]["images_per_second"] == pytest.approx(10)
    # 12.5 s in all, of which 100 images at 16 a second take 6.25 s
    assert summary["job"]["start_up_seconds"] == pytest.approx(6.25)
    found = ratios(summary)
    assert found["job_vs_ray_tuned"] == pytest.approx(2)
    assert found["job_vs_dataloader"] == pytest.approx(4)
    assert found["job_vs_ceiling"] == pytest.approx(0.8)
    assert found["job_steady_vs_ceiling"] == pytest.approx(1.6)


def test_a_rate_that_one_round_lacks_is_not_published() -> None:
    summary = summarise(RUNS, CEILINGS, cores=2)
    assert summary["dataloader"]["steady_images_per_second"] is None
    assert ratios(summary)["job_steady_vs_dataloader"] is None


def test_the_table_has_a_line_for_everything() -> None:
    summary = summarise(RUNS, CEILINGS, cores=2)
    file = io.StringIO()
    Console(file=file, width=140).print(make_table(summary, ratios(summary)))
    text = file.getvalue()
    for words in ("jobs caption", "Ray Data", "DataLoader", "ceiling", "99 of 100"):
        assert words in text


def test_of_decoding_the_least_case_counts() -> None:
    found = decoding_ratios(DECODING)
    assert found["decode_vs_generate"] == pytest.approx(2)
    assert found["decode_vs_generate_4x256"] == pytest.approx(3)
    assert found["decode_vs_single"] == pytest.approx(40)
    assert found["decode_vs_floor"] == pytest.approx(0.75)
    assert found["decode_lstm_vs_floor"] == pytest.approx(0.5)
    assert "decode_bf16_vs_generate" not in found


def test_the_table_of_decoding_has_a_line_for_each_case() -> None:
    file = io.StringIO()
    Console(file=file, width=140).print(make_decoding_table(DECODING))
    lines = [line for line in file.getvalue().splitlines() if any(case in line for case in ("small", "256", "lstm"))]
    assert all(words in lines[1] for words in ("4x256", "32.0", "3.00", "40.00", "0.90", "31 of 32"))
    assert "–" in lines[2]


def test_the_cost_of_input_is_told_by_workers_and_the_greatest_counts() -> None:
    found = training_costs(TRAINING)
    assert found["train_cached_vs_memory_workers_1"] == pytest.approx(1.25)
    assert found["train_cached_vs_memory_workers_2"] == pytest.approx(1.1)
    assert found["train_cached_vs_memory"] == pytest.approx(1.25)
    assert found["train_streaming_vs_memory"] == pytest.approx(1.03)
    assert found["train_cached_vs_memory_cpu_workers_2"] == pytest.approx(1.2)
    assert "train_streaming_vs_memory_workers_1" not in found


def test_a_slow_hour_of_the_machine_is_no_cost() -> None:
    turns = [turn("cached", 1, 10.0, 10.0), turn("cached", 1, 30.0, 30.0), turn("cached", 1, 11.0, 10.0)]
    assert training_costs(turns)["train_cached_vs_memory"] == pytest.approx(1.0)


def test_the_table_of_training_has_a_line_for_each_case() -> None:
    file = io.StringIO()
    Console(file=file, width=140).print(make_training_table(TRAINING))
    lines = [line for line in file.getvalue().splitlines() if "kept features" in line or "streamed images" in line]
    assert [line.split("│")[2].strip() for line in lines] == ["1", "2", "2"]
    assert all(words in lines[1] for words in ("22.7", "25.0", "1.100", "1.10"))
    assert all(words in lines[2] for words in ("1.030", "1.05"))


@pytest.mark.slow
def test_training_is_timed_on_made_shards_in_both_ways(tmp_path: Path) -> None:
    shards = make_shards(None, tmp_path, 4)
    assert shards.counts["train"] == 4
    measure_worker(0, 1, 0, str(tmp_path), 1)
    turns = json.loads((tmp_path / "turns-1.json").read_text())
    assert [(turn["case"], turn["images"]) for turn in turns] == [("cached", 4), ("streaming", 4)]
    assert len(training_costs(turns)) == 6


def scale_run(shards: int, seconds: float, memory: int) -> dict[str, Any]:
    return {
        "shards": shards,
        "seconds_a_shard": seconds,
        "cpu_seconds_a_shard": 2 * seconds,
        "longest_gaps": [0.5, 7.25],
        "driver_bytes_most": memory * 2**20,
    }


SCALE = {
    "images": 10**6,
    "steps": {name: {"seconds": 12.5, "cpu_seconds": 11.25, "peak_bytes": 2**29} for name in TITLES},
    "pipeline": [scale_run(1000, 0.040, 300), scale_run(20_000, 0.042, 380)],
}


def test_how_the_cost_of_a_shard_grows_is_told() -> None:
    found = scale_figures(SCALE)
    assert found["scale_shard_cost_ratio"] == pytest.approx(1.05)
    assert found["scale_driver_growth_bytes"] == 80 * 2**20
    assert (found["scale_verify_seconds"], found["scale_index_peak_bytes"]) == (12.5, 2**29)
    file = io.StringIO()
    Console(file=file, width=140).print(*make_scale_tables(SCALE))
    text = file.getvalue()
    for words in (
        "1,000,000 images",
        "writing the index",
        "≤ 180",
        "12.5",
        "0.50",
        "20,000 shards",
        "42.0",
        "7.2",
        "380",
    ):
        assert words in text


def test_the_steps_of_scale_are_taken_on_a_made_archive(tmp_path: Path) -> None:
    figures = {name: take_step(name, tmp_path, 3000) for name in ("index", "pending", "table", "verify", "growth")}
    assert figures["index"]["shards"] == figures["pending"]["pending"] == 6
    assert figures["verify"]["rows"] == 3000
    assert figures["growth"].items() >= {"new": 3, "changed": 0, "vanished": 0}.items()
    assert take_step("sample", tmp_path, 3000)["rows"] == 3
    assert all(figure["peak_bytes"] > 0 for figure in figures.values())


@pytest.mark.slow
def test_scale_is_measured_from_first_to_last(tmp_path: Path) -> None:
    raw = measure_scale(tmp_path / "work", 2000, (3, 6))
    assert [run["shards"] for run in raw["pipeline"]] == [3, 6]
    assert raw["steps"]["resume"]["pending"] == 4
    assert scale_figures(raw)["scale_images"] == 2000
    assert not (tmp_path / "work").exists()


def test_conditions_name_the_machine() -> None:
    found = conditions(2)
    assert found["cores"] == 2
    assert found["cpu"]
    assert found["packages"]["torch"]


def test_made_photos_are_the_same_every_time(tmp_path: Path) -> None:
    assert collect_photos(None, tmp_path / "a", 3) == 3
    collect_photos(None, tmp_path / "b", 3)
    first, again = ({path.name: path.read_bytes() for path in (tmp_path / each).iterdir()} for each in "ab")
    assert first == again
    assert len(set(first.values())) == 3


def test_photos_are_taken_from_all_over_a_folder(tmp_path: Path) -> None:
    source = tmp_path / "archive" / "deep"
    source.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8), (number * 40, 0, 0)).save(source / f"{number}.png")
    (source / "notes.txt").write_text("no photo")
    assert collect_photos(source.parent, tmp_path / "some", 3) == 3
    taken = [path.read_bytes() for path in sorted((tmp_path / "some").iterdir())]
    assert taken == [(source / f"{number}.png").read_bytes() for number in (0, 2, 4)]
    assert collect_photos(source.parent, tmp_path / "all", 100) == 6
    with pytest.raises(InputError, match=r"no photos"):
        collect_photos(tmp_path / "some" / "none", tmp_path / "other", 3)
