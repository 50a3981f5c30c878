"""The decoding search: candidates, the choice, and what is saved in a checkpoint."""

import json
from pathlib import Path

import pytest

from captioning.captioner import Captioner, load_captioner
from captioning.captioner_info import inspect_captioner
from captioning.data.shards import ShardSet
from captioning.decoding.settings import DecodingSettings
from captioning.errors import CheckpointError
from captioning.models.checkpoint_config import hash_files, read_config
from captioning.training.decoding_search import ScoredDecoding, choose, save_decoding, search_decoding, search_record
from captioning.training.search_settings import SearchSettings
from captioning.training.validation import caption_split, score_samples
from tests.captioning.training.test_validation import with_workers
from tests.tiny import save_tiny_captioner, write_tiny_shards

PRESENT = DecodingSettings(beam_size=3)
SETTINGS = SearchSettings(
    beam_sizes=(1, 2, 4), length_penalties=(0.5, 1.0), repetition_penalties=(1.0, 1.5), no_repeat_ngram_sizes=(0, 2)
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"val": 9})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_captioner(tmp_path / "model", decoding=DecodingSettings(beam_size=2, max_new_tokens=6))


def loaded(folder: Path) -> Captioner:
    return load_captioner(str(folder), device="cpu")


def tried(
    beams: int, cider: float, repetitions: int = 0, truncated: int = 0, unknown: int = 0, **more: float
) -> ScoredDecoding:
    decoding = DecodingSettings(beam_size=beams, **more)  # type: ignore[arg-type]
    scores = {"cider_d": cider, "repetitions": repetitions, "truncated": truncated, "unknown": unknown}
    return ScoredDecoding(decoding, scores)


def test_the_highest_score_is_chosen() -> None:
    assert choose([tried(3, 50), tried(5, 52), tried(1, 49)], PRESENT).decoding.beam_size == 5


def test_within_the_margin_fewer_beams_are_chosen() -> None:
    near = [tried(3, 50), tried(5, 50.2), tried(1, 49.8)]
    assert choose(near, PRESENT).decoding.beam_size == 3
    assert choose(near, PRESENT, SearchSettings(margin=0.5)).decoding.beam_size == 1
    assert choose(near, PRESENT, SearchSettings(margin=0.0)).decoding.beam_size == 5


def test_within_the_margin_the_present_one_stays() -> None:
    present, other = tried(3, 50), tried(3, 50.2, length_penalty=0.5)
    assert choose([other, present], PRESENT) is present
    assert choose([other, present], PRESENT, SearchSettings(margin=0.1)) is other


@pytest.mark.parametrize("flaw", ["repetitions", "truncated", "unknown"])
def test_more_flaws_than_at_present_are_never_chosen(flaw: str) -> None:
    flawed = tried(5, 90, **{flaw: 2})
    assert choose([tried(3, 50), flawed], PRESENT).decoding.beam_size == 3
    assert choose([tried(3, 50, **{flaw: 2}), flawed], PRESENT).decoding.beam_size == 5


def test_of_equal_cost_fewer_flaws_are_chosen() -> None:
    better = tried(3, 49.9, repetitions=1, length_penalty=0.5)
    assert choose([tried(3, 50, repetitions=4), better], PRESENT) is better


def test_two_rounds_are_tried_and_the_chosen_comes_first(folder: Path, shards: ShardSet) -> None:
    captioner = loaded(folder)
    heard: list[tuple[int, int]] = []
    found = search_decoding(
        captioner, shards, "val", SETTINGS, on_progress=lambda done, total: heard.append((done, total))
    )
    decodings = [each.decoding for each in found]
    assert len(set(decodings)) == len(decodings) == 5 + 3
    assert captioner.decoding in decodings
    lengths = {(each.beam_size, each.length_penalty) for each in decodings}
    assert lengths == {(1, 1.0), (2, 0.5), (2, 1.0), (4, 0.5), (4, 1.0)}
    # The repetition settings were tried with the best of the first round only.
    changed = [each for each in decodings if (each.repetition_penalty, each.no_repeat_ngram_size) != (1.0, 0)]
    assert len(changed) == 3
    assert len({(each.beam_size, each.length_penalty) for each in changed}) == 1
    assert found[0] is choose(found, captioner.decoding, SETTINGS)
    assert [each.scores["cider_d"] for each in found[1:]] == sorted(
        (each.scores["cider_d"] for each in found[1:]), reverse=True
    )
    for each in found:
        captioner.decoding = each.decoding
        assert each.scores == pytest.approx(score_samples(caption_split(captioner, shards, "val")).summary())
    assert heard[-1] == (8 * 9, 8 * 9)


def test_workers_share_the_search_and_agree(folder: Path, shards: ShardSet) -> None:
    captioner = loaded(folder)
    alone = search_decoding(captioner, shards, "val", SETTINGS)
    results = with_workers(2, lambda workers: search_decoding(captioner, shards, "val", SETTINGS, workers))
    assert results[0] == results[1]
    assert [each.decoding for each in results[0]] == [each.decoding for each in alone]
    for ours, theirs in zip(results[0], alone, strict=True):
        assert ours.scores == pytest.approx(theirs.scores)


def test_a_search_over_a_few_images_says_so(folder: Path, shards: ShardSet) -> None:
    few = SearchSettings(beam_sizes=(1,), repetition_penalties=(1.0,), no_repeat_ngram_sizes=(0,), images=4)
    record = search_record(search_decoding(loaded(folder), shards, "val", few))
    assert [each["validation"]["num_images"] for each in record] == [4, 4]
    assert {each["decoding"]["beam_size"] for each in record} == {1, 2}
    assert json.loads(json.dumps(record)) == record


def test_what_is_kept_becomes_the_default(folder: Path, shards: ShardSet) -> None:
    before, weights = read_config(folder), hash_files(folder)
    found = [ScoredDecoding(DecodingSettings(beam_size=5, length_penalty=0.5, max_new_tokens=6), scores(70)), *old()]
    save_decoding(folder, found)
    config = read_config(folder)
    assert config.decoding == found[0].decoding
    assert inspect_captioner(str(folder)).decoding.beam_size == 5
    assert config.written == before.written
    assert hash_files(folder) == weights
    rows = config.provenance["decoding_search"]
    assert [row["validation"]["cider_d"] for row in rows] == [70, 60]
    assert rows[0]["decoding"]["length_penalty"] == 0.5
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocabulary.json"]


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        save_decoding(tmp_path, old())
    assert list(tmp_path.iterdir()) == []


def scores(cider: float) -> dict[str, float]:
    names = ("bleu_4", "recall_at_10", "distinct", "mean_length", "repetitions", "truncated", "unknown", "num_images")
    return {"cider_d": cider} | dict.fromkeys(names, 1.0)


def old() -> list[ScoredDecoding]:
    return [ScoredDecoding(PRESENT, scores(60))]
