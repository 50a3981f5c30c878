"""The start of fine-tuning: vocabulary, decoding and encoder of the checkpoint, adapted to the new captions."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from captioning.captioner import load_captioner
from captioning.config import read_settings
from captioning.data.augment import Augment
from captioning.data.preprocess import Preprocess
from captioning.data.shards import ShardSet
from captioning.data.word_tokenizer import WordTokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.errors import SettingsError
from captioning.models.base import CaptionModel
from captioning.models.checkpoint import save_checkpoint
from captioning.storage import Location
from captioning.training.batches import Collator
from captioning.training.init_decoding import fit_decoding, truncation_notes
from captioning.training.loop import TrainingRun
from captioning.training.parts import Parts, make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from captioning.training.vocabulary_extension import extend_vocabulary
from tests.captioning.decoding.fakes import LogitsStepper
from tests.captioning.models.clips import CNN, PIXELS, VOCABULARY, make, photos, tiny
from tests.tiny import PREPROCESS, save_tiny_captioner, tiny_model, tiny_settings, tiny_tokenizer, write_tiny_shards

KNOWN = WordTokenizer(["a", "red", "square", "at", "the", "top"])
CAPTIONS = ["A red tractor."] * 3 + ["a silo at the top"] * 2 + ["a barn"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Squares whose captions hold words (square, bottom, …) that `short_of_words` lacks."""
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 16, "val": 4})


@pytest.fixture(scope="module")
def short_of_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioner")
    words = WordTokenizer([word for word in tiny_tokenizer().words if word not in ("square", "bottom")])
    model = tiny_model(vocabulary_size=words.vocab_size)
    save_checkpoint(folder, model, words, PREPROCESS, DecodingSettings(beam_size=2, length_penalty=0.7))
    return folder


class TestWords:
    def test_frequent_new_ones_are_added_and_the_rest_is_told(self) -> None:
        found = extend_vocabulary(KNOWN, CAPTIONS, min_count=2, extend=True, name="mine")
        assert found.tokenizer.words == (*KNOWN.words, "tractor", "silo")
        assert "2 that mine lacked" in found.notes[0]
        assert "tractor (3), silo (2)" in found.notes[0]
        # 9 + 10 + 2 words, one of which stays unknown.
        assert f"{1 / 21:.1%}" in found.notes[1]
        assert "barn (1)" in found.notes[1]
        assert "min_count=2" in found.notes[1]

    def test_without_extend_none_is_added_and_all_are_told(self) -> None:
        found = extend_vocabulary(KNOWN, CAPTIONS, min_count=2, extend=False, name="mine")
        assert found.tokenizer.words == KNOWN.words
        (line,) = found.notes
        assert f"{6 / 21:.1%}" in line
        assert "tractor (3), silo (2), barn (1)" in line
        assert "tokenizer.extend=true" in line

    def test_nothing_new_nothing_changed(self) -> None:
        found = extend_vocabulary(KNOWN, ["a red square"], min_count=1, extend=True, name="mine")
        assert found.tokenizer is KNOWN
        assert found.notes == ("Words: mine knows all words of the captions.",)

    def test_ids_stay_as_they_are(self) -> None:
        grown = KNOWN.with_words(["silo"])
        assert grown.encode("a red silo") == [*KNOWN.encode("a red"), KNOWN.vocab_size]


@pytest.mark.parametrize("kind", ["cnn_lstm", "clip_gpt2", "clip_gpt2 untied"])
@torch.no_grad()
def test_a_grown_model_says_what_it_said(kind: str) -> None:
    model: CaptionModel
    if kind == "cnn_lstm":
        model, pixels = tiny_model(), torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    else:
        untied = {"gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "tie_word_embeddings": False}}
        model, pixels = make(tiny(**(untied if "untied" in kind else {}))), photos(2)
    size = model.vocab_size
    before = LogitsStepper(model.stepper(model.encode(pixels))).start()
    model.grow_vocabulary(size + 3)
    stepper = LogitsStepper(model.stepper(model.encode(pixels)))
    after = stepper.start()
    assert after.shape == (2, size + 3)
    torch.testing.assert_close(after[:, :size], before)
    # New embeddings are the mean of the old ones: all equal, and none is likely.
    torch.testing.assert_close(after[:, size:], before.mean(1, keepdim=True).expand(-1, 3), rtol=1e-4, atol=1e-5)
    stepper.advance(torch.full((2,), size + 2), [0, 1])


@pytest.mark.parametrize("tie", [True, False])
def test_a_grown_gpt2_can_be_saved_and_loaded(tie: bool, tmp_path: Path) -> None:
    gpt2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24, "tie_word_embeddings": tie}
    model = make(tiny(gpt2=gpt2))
    words = WordTokenizer([f"word{number}" for number in range(VOCABULARY.size + 4 - 3)])
    model.grow_vocabulary(words.vocab_size)
    save_checkpoint(tmp_path, model, words, PIXELS, DecodingSettings(max_new_tokens=5))
    captioner = load_captioner(str(tmp_path), device="cpu")
    assert captioner.model.vocab_size == VOCABULARY.size + 4
    for name, value in model.state_dict().items():
        torch.testing.assert_close(captioner.model.state_dict()[name], value)


def test_new_words_are_learned_and_kept(short_of_words: Path, shards: ShardSet, tmp_path: Path) -> None:
    lines: list[str] = []
    settings = recipe(short_of_words, "optim.lr=0.02", "epochs=12", "validation.every_steps=48")
    run = begin(settings, shards, tmp_path, lines)
    assert "square" in lines[0]
    assert "bottom" in lines[0]
    run.run()
    notes = [record["message"] for record in run.progress.history if record["kind"] == "note"]
    assert notes[: len(lines)] == lines
    captioner = load_captioner(str(tmp_path / "best"), device="cpu")
    assert captioner.tokenizer.encode("square bottom")[0] != captioner.tokenizer.encode("zebra")[0]
    said = captioner.caption_pixels(torch.randint(0, 40, (1, 32, 32, 3), dtype=torch.uint8).numpy())
    assert "square" in said[0].text


def test_extend_can_be_refused(short_of_words: Path, shards: ShardSet) -> None:
    lines: list[str] = []
    tokenizer = make_tokenizer(recipe(short_of_words, "tokenizer.extend=false"), shards, lines.append)
    assert tokenizer.vocab_size == tiny_tokenizer().vocab_size - 2
    assert "tokenizer.extend=true" in lines[0]


class TestDecoding:
    def test_that_of_init_is_kept_but_for_what_is_set(self, short_of_words: Path, shards: ShardSet) -> None:
        own = load_captioner(str(short_of_words), device="cpu").decoding
        assert parts(recipe(short_of_words), shards).decoding == own
        changed = parts(recipe(short_of_words, "decoding.beam_size=1"), shards).decoding
        assert (changed.beam_size, changed.length_penalty) == (1, own.length_penalty)

    def test_what_is_saved_decodes_as_init_did(self, short_of_words: Path, shards: ShardSet, tmp_path: Path) -> None:
        begin(recipe(short_of_words, "epochs=1"), shards, tmp_path, []).run()
        assert load_captioner(str(tmp_path / "best"), device="cpu").decoding.length_penalty == 0.7

    def test_a_wrong_key_is_named(self, short_of_words: Path, shards: ShardSet) -> None:
        with pytest.raises(SettingsError, match="unknown key 'beams'"):
            recipe(None, "decoding.beams=2")
        with pytest.raises(SettingsError, match="unknown key 'beams'"):
            parts(recipe(short_of_words, "decoding.beams=2"), shards)

    def test_rules_that_the_captions_break_are_given_up(self) -> None:
        own = DecodingSettings(no_repeat_ngram_size=2, max_new_tokens=6)
        twice, plain = [1, 2, 3, 1, 2], [1, 2, 3, 4]
        assert fit_decoding(own, [plain] * 9, longest=40) == (own, [])
        # One of a few captions, or a few of many, do not change the decoding.
        assert fit_decoding(own, [plain] * 9 + [twice], longest=40) == (own, [])
        assert fit_decoding(own, [plain] * 97 + [twice] * 3, longest=40) == (own, [])
        fitting, lines = fit_decoding(own, [plain] * 93 + [twice] * 7, longest=40)
        assert fitting.no_repeat_ngram_size == 3
        assert "no_repeat_ngram_size is now 3, not 2" in lines[0]
        assert fit_decoding(own, [plain] * 93 + [twice] * 7, longest=40, keep=["no_repeat_ngram_size"]) == (own, [])

    def test_no_rule_is_left_where_long_runs_come_twice(self) -> None:
        own = DecodingSettings(no_repeat_ngram_size=3, max_new_tokens=8)
        plain, twice = [1, 2, 3, 4], [1, 2, 3, 4] * 2
        # For longer n-grams fewer captions suffice, since these hardly repeat by chance.
        assert fit_decoding(own, [plain] * 97 + [twice] * 3, longest=8)[0].no_repeat_ngram_size == 0

    def test_captions_may_be_as_long_as_theirs(self) -> None:
        own = DecodingSettings(max_new_tokens=6)
        long = [list(range(11))] * 5
        assert fit_decoding(own, [[1] * 5, *[[1] * 3] * 9], longest=40) == (own, [])
        assert fit_decoding(own, long, longest=40)[0].max_new_tokens == 12
        assert fit_decoding(own, long, longest=10)[0].max_new_tokens == 10
        assert fit_decoding(own, long, longest=40, keep=["max_new_tokens"]) == (own, [])

    def test_captions_that_are_cut_are_told_and_have_no_end(self) -> None:
        assert truncation_notes([[1] * 11, [1] * 3], 12) == []
        [line] = truncation_notes([[1] * 12, [1] * 3, [1] * 20, [1] * 3], 12)
        assert line.startswith("50.0% of the captions are longer than 12 tokens")
        assert "has 21 tokens" in line
        maker = Collator(Preprocess(PREPROCESS), KNOWN, Augment(flip=False, crop=1.0, seed=0), max_tokens=4)
        rows = maker.collate_text(["a red square at the top", "a red top"]).captions.tolist()
        assert rows[0] == KNOWN.encode("a red square at")
        assert rows[1] == [*KNOWN.encode("a red top"), KNOWN.eos_id]


class TestEncoder:
    @pytest.mark.parametrize("share", ["frozen", "late", "all"])
    @pytest.mark.parametrize("kind", ["cnn_lstm", "clip_gpt2"])
    def test_one_word_for_every_model(self, kind: str, share: str, shards: ShardSet, tmp_path: Path) -> None:
        if kind == "cnn_lstm":
            model: CaptionModel = tiny_model(tiny_settings(tune_from=None))
        else:
            model = make(tiny("patches", clip=CNN, train="mapper"))
        settings = read_settings(TrainSettings, None, [f"encoder={share}", "tokenizer.min_count=1"])
        begun = Parts(model, tiny_tokenizer(), PREPROCESS if kind == "cnn_lstm" else PIXELS)
        stage = TrainingRun(settings, begun, shards, Location.parse(str(tmp_path))).start_stage(None)
        learning = {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}
        trunk = [name for name, _ in stage.model.named_parameters() if ".trunk." in name]
        learned = [name for name in trunk if name in learning]
        assert len(learned) == {"frozen": 0, "late": len(learned), "all": len(trunk)}[share]
        if share == "late":
            # The last of the parts, from a whole block on.
            assert 0 < len(learned) < len(trunk)
            assert trunk[-len(learned) :] == learned
        decoder = {name for name in learning if name.startswith(("embed.", "lstm.", "gpt2."))}
        assert decoder

    def test_late_is_what_makes_the_last_grid(self) -> None:
        assert tiny_model(tiny_settings()).encoder.late_part() == "blocks.4"

    def test_tune_is_laid_over_it(self, shards: ShardSet, tmp_path: Path) -> None:
        settings = read_settings(TrainSettings, None, ["encoder=late", "tune={encoder: {tune_from: blocks.1}}"])
        begun = Parts(tiny_model(), tiny_tokenizer(), PREPROCESS)
        stage = TrainingRun(settings, begun, shards, Location.parse(str(tmp_path))).start_stage(None)
        learned = [name for name, p in stage.model.named_parameters() if ".trunk." in name and p.requires_grad]
        assert ".blocks.1." in learned[0]


def test_a_card_says_what_it_was_made_from(shards: ShardSet, tmp_path: Path) -> None:
    init = save_tiny_captioner(tmp_path / "tiny")
    begin(recipe(init, "epochs=1"), shards, tmp_path / "run", []).run()
    card = (tmp_path / "run" / "best" / "README.md").read_text()
    assert f"fine-tuned from `{init}`" in card
    assert f"base_model: {init}" in card
    # With `init` the settings of a new model are not part of the recipe.
    assert "embedding_size" not in card
    assert (load_file(tmp_path / "run" / "best" / "model.safetensors")["embed.weight"]).shape[1] == 16


def recipe(init: Path | None, *overrides: str) -> TrainSettings:
    values = ["tokenizer.min_count=2", "images_per_step=4", "images_per_pass=4", "optim.warmup_steps=2", "flip=false"]
    return read_settings(TrainSettings, None, [*values, *([f"init={init}"] if init else []), *overrides])


def parts(settings: TrainSettings, shards: ShardSet) -> Parts:
    return make_parts(settings, make_tokenizer(settings, shards), shards)


def begin(settings: TrainSettings, shards: ShardSet, folder: Path, lines: list[str], **more: Any) -> TrainingRun:
    begun = make_parts(settings, make_tokenizer(settings, shards, lines.append), shards, lines.append)
    return TrainingRun(settings, begun, shards, Location.parse(str(folder)), notes=lines, **more)
