"""The benchmark's figures and tables from given timings; most of the timed programs are not run here."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from captioning.errors import InputError, UnfinishedError
from tests.benchmarks.bench import in_turn
from tests.benchmarks.cluster import cluster_figures, make_cluster_table, take
from tests.benchmarks.conditions import conditions
from tests.benchmarks.decoding_results import decoding_ratios, make_decoding_table
from tests.benchmarks.encoder_results import encoder_figures, make_encoder_tables
from tests.benchmarks.first import first_figures, make_first_table
from tests.benchmarks.jpeg_results import jpeg_figures, make_jpeg_tables
from tests.benchmarks.jpegs import decoders
from tests.benchmarks.measure import measure
from tests.benchmarks.memory import make_memory_table, memory_figures, role_of
from tests.benchmarks.photos import collect_photos
from tests.benchmarks.programs import steady_rate
from tests.benchmarks.raw import Turns, read_raw
from tests.benchmarks.results import make_tables, ratios, summarise
from tests.benchmarks.scale import TITLES, make_scale_tables, measure_scale, scale_figures
from tests.benchmarks.scale_steps import take_step
from tests.benchmarks.start import make_start_table, start_figures
from tests.benchmarks.training import make_shards, measure_worker
from tests.benchmarks.training_results import make_training_table, training_costs


def run(case: str, number: int, seconds: float, steady: float | None, same: int = 100) -> dict[str, Any]:
    return {
        "case": case,
        "model": "flickr-lstm",
        "round": number,
        "images": 100,
        "seconds": seconds,
        "steady_images_per_second": steady,
        "peak_bytes": 2**30,
        "same_captions": same,
    }


def ceiling(number: int, cost: float, model: str = "flickr-lstm") -> dict[str, Any]:
    stages = {"fetch": 0.0, "decode": 0.05, "encode": cost / 2, "generate": cost / 2, "write": 0.0}
    return {"case": "ceiling", "model": model, "round": number, "cores": 2, "cpu_seconds_an_image": stages}


RUNS = [
    *(run("job", *each) for each in ((0, 10, 20.0), (1, 40, 5.0), (2, 12.5, 16.0))),
    *(run("ray_tuned", *each) for each in ((0, 25, 8.0), (1, 25, 8.0, 99), (2, 25, 8.0))),
    *(run("dataloader", *each) for each in ((0, 50, None), (1, 50, 4.0), (2, 50, 4.0))),
    {"case": "daft", "model": "flickr-lstm", "round": 0, "not_measured": "the package daft is not installed"},
    *(ceiling(number, cost) for number, cost in enumerate((0.1, 0.15, 0.9))),
]
OTHER = [{**run("job", 0, 25, 6.0), "model": "runs/other-one"}, ceiling(0, 0.15, model="runs/other-one")]
DECODING = [
    {"case": case, "round": number, "images": 32, "seconds": seconds, "same_as_generate": 31 + number}
    for case, seconds in (
        ("gpt2-small", {"ours": 4.0, "generate": 8.0, "single": 200.0, "floor": 3.0}),
        ("4x256", {"ours": 1.0, "generate": 3.0, "single": 40.0, "floor": 0.9}),
        ("lstm", {"ours": 0.2, "floor": 0.1}),
    )
    for number in range(2)
]


def printed(*tables: Table) -> str:
    file = io.StringIO()
    Console(file=file, width=140).print(*tables)
    return file.getvalue()


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
    summary = summarise(RUNS)
    assert summary["job"]["images_per_second"] == 8
    assert summary["ceiling"]["images_per_second"] == pytest.approx(10)
    # 12.5 s in all, of which 100 images at 16 a second take 6.25 s
    assert summary["job"]["start_up_seconds"] == pytest.approx(6.25)
    found = ratios(RUNS)
    assert found["job_vs_ray_tuned"] == pytest.approx(2)
    assert found["job_vs_dataloader"] == pytest.approx(4)
    assert found["job_whole_vs_ceiling"] == pytest.approx(0.8)
    assert found["job_vs_ceiling"] == pytest.approx(1.6)
    assert "job_vs_daft" not in found


def test_the_smallest_ratio_of_the_captioners_counts() -> None:
    found = ratios([*RUNS, *OTHER])
    assert found["job_vs_ceiling_flickr_lstm"] == pytest.approx(1.6)
    assert found["job_vs_ceiling_other_one"] == found["job_vs_ceiling"] == pytest.approx(0.6)
    assert found["job_vs_ray_tuned"] == found["job_vs_ray_tuned_flickr_lstm"] == pytest.approx(2)


def test_a_rate_that_one_round_lacks_is_not_published() -> None:
    assert summarise(RUNS)["dataloader"]["steady_images_per_second"] is None
    assert ratios(RUNS)["job_steady_vs_dataloader"] is None


def test_the_table_has_a_line_for_everything() -> None:
    text = printed(*make_tables([*RUNS, *OTHER]))
    for words in ("jobs caption", "Ray Data", "DataLoader", "ceiling", "99 of 100", "not measured", "other-one"):
        assert words in text


def test_the_smallest_ratio_of_the_decoding_cases_counts() -> None:
    found = decoding_ratios(DECODING)
    assert found["decode_vs_generate"] == pytest.approx(2)
    assert found["decode_vs_generate_4x256"] == pytest.approx(3)
    assert found["decode_vs_single"] == pytest.approx(40)
    assert found["decode_vs_floor"] == pytest.approx(0.75)
    assert found["decode_lstm_vs_floor"] == pytest.approx(0.5)
    assert "decode_bf16_vs_generate" not in found


def test_the_table_of_decoding_has_a_line_for_each_case() -> None:
    lines = [
        line
        for line in printed(make_decoding_table(DECODING)).splitlines()
        if any(case in line for case in ("small", "256", "lstm"))
    ]
    assert all(words in lines[1] for words in ("4x256", "32.0", "3.00", "40.00", "0.90", "31 of 32"))
    assert "–" in lines[2]


def test_the_cost_of_input_is_given_by_workers_and_the_greatest_counts() -> None:
    found = training_costs(TRAINING)
    assert found["train_cached_vs_memory_workers_1"] == pytest.approx(1.25)
    assert found["train_cached_vs_memory_workers_2"] == pytest.approx(1.1)
    assert found["train_cached_vs_memory"] == pytest.approx(1.25)
    assert found["train_streaming_vs_memory"] == pytest.approx(1.03)
    assert found["train_cached_vs_memory_cpu_workers_2"] == pytest.approx(1.2)
    assert "train_streaming_vs_memory_workers_1" not in found


def test_a_slow_hour_of_the_machine_does_not_count() -> None:
    turns = [turn("cached", 1, 10.0, 10.0), turn("cached", 1, 30.0, 30.0), turn("cached", 1, 11.0, 10.0)]
    assert training_costs(turns)["train_cached_vs_memory"] == pytest.approx(1.0)


def test_the_table_of_training_has_a_line_for_each_case() -> None:
    lines = [
        line
        for line in printed(make_training_table(TRAINING)).splitlines()
        if "kept features" in line or "streamed images" in line
    ]
    assert [line.split("│")[2].strip() for line in lines] == ["1", "2", "2"]
    assert all(words in lines[1] for words in ("22.7", "25.0", "1.100", "1.10"))
    assert all(words in lines[2] for words in ("1.030", "1.05"))


@pytest.mark.slow
def test_training_is_timed_on_synthetic_shards_in_both_ways(tmp_path: Path) -> None:
    shards = make_shards(None, tmp_path, 4)
    assert shards.counts["train"] == 4
    measure_worker(0, 1, 0, str(tmp_path), 1)
    turns = json.loads((tmp_path / "turns-1.json").read_text())
    assert [(turn["case"], turn["images"]) for turn in turns] == [("cached", 4), ("streaming", 4)]
    assert len(training_costs(turns)) == 6


def scale_run(shards: int, a_shard: float, memory: int) -> dict[str, Any]:
    return {
        "shards": shards,
        "run_seconds": 6 + (shards - 1) * a_shard,
        "run_cpu_seconds": 4 + (shards - 1) * 2 * a_shard,
        "longest_gaps": [0.5, 7.25],
        "driver_bytes_most": memory * 2**20,
    }


SCALE = {
    "images": 10**6,
    "steps": {name: {"seconds": 12.5, "cpu_seconds": 11.25, "peak_bytes": 2**29} for name in TITLES},
    "pipeline": [
        scale_run(1, 0.0, 100),
        *(scale_run(1000, cost, 300) for cost in (0.060, 0.039, 0.040)),
        scale_run(20_000, 0.042, 380),
    ],
}


def test_the_growth_of_a_shards_cost_is_reported() -> None:
    found = scale_figures(SCALE)
    assert found["scale_shard_cost_ratio"] == found["scale_shard_cpu_cost_ratio"] == pytest.approx(1.05)
    assert found["scale_driver_growth_bytes"] == 80 * 2**20
    assert (found["scale_verify_seconds"], found["scale_index_peak_bytes"]) == (12.5, 2**29)
    text = printed(*make_scale_tables(SCALE))
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


def test_the_steps_of_scale_run_on_a_synthetic_archive(tmp_path: Path) -> None:
    figures = {name: take_step(name, tmp_path, 3000) for name in ("index", "pending", "table", "verify", "growth")}
    assert figures["index"]["shards"] == figures["pending"]["pending"] == 6
    assert figures["verify"]["rows"] == 3000
    assert figures["growth"].items() >= {"new": 3, "changed": 0, "vanished": 0}.items()
    assert take_step("sample", tmp_path, 3000)["rows"] == 3
    assert all(figure["peak_bytes"] > 0 for figure in figures.values())


@pytest.mark.slow
def test_scale_is_measured_from_first_to_last(tmp_path: Path) -> None:
    raw = measure_scale(tmp_path / "work", 2000, (1, 3, 6))
    assert [run["shards"] for run in raw["pipeline"]] == [1, 3, 6]
    assert raw["steps"]["resume"]["pending"] == 4
    assert scale_figures(raw)["scale_images"] == 2000
    assert not (tmp_path / "work").exists()


def test_scaling_with_nodes_is_reported() -> None:
    runs = [(1, 40, 1.0, 5.0), (2, 80, 1.9, 6.0), (8, 320, 7.4, 12.0), (8, 320, 7.2, 12.0), (8, 320, 1.0, 12.0)]
    turns = [
        {"nodes": nodes, "shards": shards, "images_per_second": rate, "driver_cpu_seconds": cpu, "least_share": 0.9}
        for nodes, shards, rate, cpu in runs
    ]
    found = cluster_figures(turns)
    assert found["cluster_efficiency_2"] == pytest.approx(0.95)
    assert found["cluster_efficiency_8"] == pytest.approx(0.9)
    assert found["cluster_driver_cpu_seconds_a_shard"] == pytest.approx(7 / 280)
    assert found["cluster_driver_images_per_second"] == pytest.approx(512 * 40)
    text = printed(make_cluster_table(turns))
    for words in ("1 node ", "8 nodes", "90.0%", "20,480 images/s", "20 GPUs of 1,000"):
        assert words in text


@pytest.mark.slow
def test_a_run_on_simulated_gpus(tmp_path: Path) -> None:
    figures = take(tmp_path / "work", nodes=2, shards=12)
    assert 0 < figures["images_per_second"] < 4
    assert figures["driver_cpu_seconds"] > 0


def test_programs_take_turns() -> None:
    assert list(in_turn("abc", 2)) == [(0, "a"), (0, "b"), (0, "c"), (1, "b"), (1, "c"), (1, "a")]


def test_measurements_are_saved_and_resumed(tmp_path: Path) -> None:
    path, settings = tmp_path / "jobs.json", {"count": 7, "models": ("a", "b")}
    turns = Turns(path, settings, {})
    turns.add({"case": "job", "round": 0, "seconds": 1.5})
    again = Turns(path, settings, {}, resume=True)
    assert again.have(case="job", round=0)
    assert not again.have(case="job", round=1)
    again.add({"case": "job", "round": 1, "seconds": 2.5})
    assert [turn["seconds"] for turn in read_raw(tmp_path)["jobs"]["turns"]] == [1.5, 2.5]
    assert len(Turns(path, {**settings, "count": 8}, {}, resume=True)) == 0
    assert len(Turns(path, settings, {})) == 0


def test_the_faster_bare_program_and_the_slower_captioner_count() -> None:
    seconds = {
        "a": {"job": [6.0, 5.0, 90.0], "bare": [5.0, 5.0, 4.0], "bare_plain": [4.0, 4.0, 4.0]},
        "b": {"job": [8.0], "bare": [5.0]},
    }
    turns = [
        {"case": case, "model": model, "round": number, "seconds": each}
        for model, cases in seconds.items()
        for case, rounds in cases.items()
        for number, each in enumerate(rounds)
    ]
    assert start_figures(turns) == {"start_seconds_10": 8.0, "start_vs_bare": pytest.approx(1.6)}
    assert start_figures([turn for turn in turns if turn["case"] != "job"]) == {}
    assert "6.0" in printed(make_start_table(turns))


def test_the_captioner_is_compared_with_its_first_engine() -> None:
    turns = [
        {
            "case": case,
            "round": number,
            "images": 2,
            "cpu_seconds_an_image": {"decode": 0.001, "encode": cost, "generate": 0.019},
            **({"captions": ["a dog", caption]} if number == 0 else {}),
        }
        for case, cost, caption in (("now", 0.02, "a cat"), ("first", 0.1, "a cow"))
        for number in range(2)
    ]
    assert first_figures(turns)["bundled_vs_first"] == pytest.approx(3)
    text = printed(make_first_table(turns))
    assert all(words in text for words in ("25.0", "100.0", "1 of 2"))
    missing = [{"case": "first", "round": 0, "not_measured": "git has no revision e4dfafcbd9e0 here"}]
    assert first_figures(missing) == {"bundled_vs_first": None}
    assert "not measured" in printed(make_first_table(missing))


def test_growth_of_memory_is_reported_by_role() -> None:
    turns = [
        {"case": "local", "times": times, "round": number, "images": 256 * times, "peak_by_role": sizes}
        for number in range(2)
        for times, sizes in (
            (1, {"driver": 100, "captioner": 400, "ray": 9}),
            (10, {"driver": 110, "captioner": 404, "task": 7}),
        )
    ]
    found = memory_figures(turns)
    assert found["memory_local_driver_bytes"] == 110
    assert found["memory_local_captioner_growth_bytes"] == 4
    assert found["memory_growth"] == pytest.approx(1.1)
    assert "+10.0%" in printed(make_memory_table(turns))


def test_processes_of_the_job_have_roles() -> None:
    assert role_of("/usr/bin/python -m jobs.workers.decode_child") == "decoder"
    assert role_of("/usr/bin/python -m jobs.runners.shard_worker") == "captioner"
    assert role_of("ray::MapWorker(MapBatches(CaptionShard)).submit()") == "captioner"
    assert role_of("ray::IDLE") == "task"
    assert role_of("/ray/core/src/ray/raylet/raylet --raylet_socket_name=x") == "ray"


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_a_program_is_measured_from_outside(tmp_path: Path) -> None:
    child = "import time; held = bytearray(64 << 20); time.sleep(2)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, 'the-child'])"
    environment = dict(os.environ)
    command = [sys.executable, "-c", parent]
    measured = measure(command, environment=environment, log=tmp_path / "log", role_of=lambda line: line[-9:])
    assert measured.seconds > 2
    assert measured.peak_by_role["the-child"] > 64 << 20
    assert measured.peak_bytes is not None
    assert measured.peak_bytes > 64 << 20
    assert max(held["the-child"] for _, held in measured.memory if "the-child" in held) > 64 << 20
    with pytest.raises(UnfinishedError, match="its last words.*\n.*no"):
        measure([sys.executable, "-c", "raise SystemExit('no')"], environment=environment, log=tmp_path / "log")


def test_encoder_back_ends_are_compared_with_eager() -> None:
    turns: list[dict[str, Any]] = [
        {
            "model": model,
            "precision": "fp32",
            "encoder": encoder,
            "round": number,
            "encode": seconds,
            "load": 0.25,
            "peak": 700 * 2**20,
            **({"captions": ["a dog", encoder]} if number == 0 else {}),
        }
        for model, ours in (("a", 0.02), ("b", 0.04))
        for number in range(3)
        for encoder, seconds in (("eager", 0.06), ("auto", ours))
    ]
    turns.append({"model": "a", "precision": "fp32", "encoder": "compile", "round": 0, "not_measured": "no compiler"})
    assert encoder_figures(turns)["encoder_vs_eager"] == pytest.approx(1.5)
    text = printed(*make_encoder_tables(turns))
    assert all(words in text for words in ("fp32, auto", "3.00", "1 of 2", "700", "not measured"))


def test_jpeg_decoders_are_compared_with_pillow(tmp_path: Path) -> None:
    turns = [
        {
            "case": case,
            "decoder": name,
            "round": number,
            "images": 10,
            "cpu_seconds": seconds,
            "mean_difference": 0.25,
        }
        for case, ours in (("photos", 2.0), ("large", 4.0))
        for number in range(3)
        for name, seconds in (("this package", ours), ("Pillow", 6.0))
    ]
    found = jpeg_figures(turns)
    assert (found["jpeg_vs_pillow"], found["jpeg_vs_pillow_photos"]) == (1.5, 3.0)
    assert "0.25" in printed(*make_jpeg_tables(turns))


def test_jpeg_decoders_see_the_same_photo(tmp_path: Path) -> None:
    collect_photos(None, tmp_path / "photos", 1, sides=[640])
    [path] = (tmp_path / "photos").iterdir()
    found = {name: decode(path.read_bytes(), 64).astype(int) for name, decode in decoders().items()}
    assert len(found) >= 4
    for name, pixels in found.items():
        assert pixels.shape == (64, 64, 3), name
        assert abs(pixels - found["Pillow"]).mean() < 2, name


def test_conditions_name_the_machine() -> None:
    found = conditions(2)
    assert found["cores"] == 2
    assert found["cpu"]
    assert found["packages"]["torch"]


def test_synthetic_photos_are_the_same_every_time(tmp_path: Path) -> None:
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
