"""The benchmark's rivals give the same captions as our captioner, word for word."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from captioning import load_captioner
from captioning.config import build
from captioning.decoding.search import decode
from captioning.decoding.settings import DecodingSettings
from tests.benchmarks.__main__ import main
from tests.benchmarks.photos import collect_photos
from tests.benchmarks.rivals.plain_captioner import PlainCaptioner
from tests.benchmarks.rivals.plain_search import LstmDecoder, search
from tests.tiny import tiny_model, tiny_settings, tiny_tokenizer

CASES: dict[str, dict[str, Any]] = {
    "greedy": {"beam_size": 1},
    "beam": {"beam_size": 3},
    "longer": {"beam_size": 3, "length_penalty": 2.0},
    "shorter": {"beam_size": 5, "length_penalty": -1.0},
    "no bigram twice": {"beam_size": 3, "no_repeat_ngram_size": 2},
    "no word twice": {"beam_size": 1, "no_repeat_ngram_size": 1},
    "repetition penalised": {"beam_size": 3, "repetition_penalty": 1.3},
    "repetition penalised, greedy": {"beam_size": 1, "repetition_penalty": 1.3},
    "not too short": {"beam_size": 3, "min_new_tokens": 7},
}


@pytest.mark.parametrize("prompt", [None, [4, 5]])
@pytest.mark.parametrize("attention", [False, True])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_plain_search_finds_what_the_engine_finds(case: str, attention: bool, prompt: list[int] | None) -> None:
    # In float64, so that rounding makes no difference.
    model, tokenizer = tiny_model(tiny_settings(attention=attention)).double(), tiny_tokenizer()
    settings = build(DecodingSettings, {"max_new_tokens": 9, **CASES[case]}, where="a test")
    for layer in (model.lstm, model.speak, model.initial):
        for weight in layer.parameters():
            weight.mul_(6)  # random weights say one thing of all images
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8))
    features = dataclasses.replace(model.encode(pixels), pooled=torch.randn(12, 16, dtype=torch.float64))
    banned = tokenizer.banned_ids
    ours = decode(model.stepper(features, prompt), settings, eos_id=tokenizer.eos_id, banned=banned)
    plain = search(LstmDecoder(model, features, prompt or []), settings, tokenizer.eos_id, banned)
    assert plain == [list(hypotheses[0].tokens) for hypotheses in ours]
    assert len({tuple(tokens) for tokens in plain}) > 5


@pytest.mark.filterwarnings("ignore:Passing `:UserWarning")
@pytest.mark.parametrize("ref", ["flickr-lstm", "flickr-clip-gpt2"])
def test_the_plain_captioner_writes_our_captions(ref: str, tmp_path: Path) -> None:
    collect_photos(None, tmp_path / "photos", 4)
    files = [path.read_bytes() for path in sorted((tmp_path / "photos").iterdir())]
    plain, ours = PlainCaptioner(ref), load_captioner(ref, device="cpu")
    captions = plain.caption(plain.pixels(files))
    assert captions == [caption.text for caption in ours.caption_pixels(plain.pixels(files))]
    assert len(set(captions)) > 1


def run_bench(output: Path, model: Path, *more: str) -> dict[str, Any]:
    """The results of `python -m tests.benchmarks` on four synthetic photos."""
    given = ["--only", "jobs", "--count", "4", "--rounds", "1", "--model", str(model), "-o", str(output), *more]
    assert main(given) == 0
    results: dict[str, Any] = json.loads(output.read_text())
    return results


def test_a_benchmark_of_one_rival_is_resumed(
    tiny_captioner: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.json"
    first = run_bench(output, tiny_captioner, "--program", "dataloader")
    assert [(turn["case"], turn["images"]) for turn in first["raw"]["jobs"]] == [("dataloader", 4)]
    again = run_bench(output, tiny_captioner, "--program", "dataloader", "--resume")
    assert again["raw"]["jobs"] == first["raw"]["jobs"]
    assert "DataLoader" in output.with_suffix(".txt").read_text()
    assert "DataLoader" in capsys.readouterr().out


@pytest.mark.slow
def test_all_programs_write_our_captions(tiny_captioner: Path, tmp_path: Path) -> None:
    results = run_bench(tmp_path / "results.json", tiny_captioner)
    programs = results["summary"][str(tiny_captioner)]
    assert programs.keys() >= {"job", "ray_script", "ray_tuned", "dataloader", "ceiling"}
    assert {name: line["same_captions"] for name, line in programs.items() if name != "ceiling"} == dict.fromkeys(
        programs.keys() - {"ceiling"}, 4
    )
    assert results["job_vs_ray_script"] > 0
