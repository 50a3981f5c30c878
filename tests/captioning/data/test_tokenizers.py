import json
import pickle

import pytest
from tokenizers import Tokenizer as Backend

from captioning.data.tokenizers import BpeTokenizer, Tokenizer, WordTokenizer, load_tokenizer
from captioning.errors import CheckpointError

CAPTIONS = [
    "A man's dog runs.",
    "A man and a dog run .",
    "Two dogs, one man.",
    "The dog isn't running",
    "a zebra",
] * 3


def words(min_count: int = 3) -> WordTokenizer:
    return WordTokenizer.train(CAPTIONS, min_count=min_count)


def bpe(vocab_size: int = 300) -> BpeTokenizer:
    return BpeTokenizer.train(CAPTIONS, vocab_size)


@pytest.fixture(params=[words, bpe], ids=["word", "bpe"])
def tokenizer(request) -> Tokenizer:
    return request.param()


def test_round_trip(tokenizer):
    for text in ("a man's dog, two dogs", "the dog isn't running"):
        ids = tokenizer.encode(text)
        assert all(0 <= number < tokenizer.vocab_size for number in ids)
        assert tokenizer.decode(ids) == text


def test_specials_are_neither_added_nor_shown(tokenizer):
    ids = tokenizer.encode("a dog")
    assert tokenizer.bos_id not in ids
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode([tokenizer.bos_id, *ids, tokenizer.eos_id]) == "a dog"


def test_the_end_can_always_be_said(tokenizer):
    assert tokenizer.eos_id not in tokenizer.banned_ids


def test_nothing_in_nothing_out(tokenizer):
    assert tokenizer.encode("  ") == []
    assert tokenizer.decode([]) == ""


def test_saved_and_loaded(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "new" / "checkpoint")
    again = load_tokenizer(tmp_path / "new" / "checkpoint")
    assert again.kind == tokenizer.kind
    for attribute in ("vocab_size", "bos_id", "eos_id", "banned_ids"):
        assert getattr(again, attribute) == getattr(tokenizer, attribute)
    for text in CAPTIONS:
        assert again.encode(text) == tokenizer.encode(text)


def test_crosses_a_process_border(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode("two dogs") == tokenizer.encode("two dogs")


def test_training_is_deterministic(tokenizer, tmp_path):
    for name, captions in (("first", CAPTIONS), ("second", CAPTIONS)):
        kind = type(tokenizer)
        trained = kind.train(captions, 300) if kind is BpeTokenizer else kind.train(captions, min_count=3)
        trained.save(tmp_path / name)
    first, second = (sorted((tmp_path / name).iterdir()) for name in ("first", "second"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_word_vocabulary_by_count():
    assert words(3).vocab_size > words(9).vocab_size
    assert words(9).words == ("a", "dog", "man")
    tokenizer = words(9)
    assert tokenizer.encode("A zebra, a DOG") == [3, tokenizer.unk_id, tokenizer.unk_id, 3, 4]
    assert set(tokenizer.banned_ids) == {tokenizer.bos_id, tokenizer.unk_id}


def test_word_order_does_not_depend_on_the_order_of_captions():
    assert WordTokenizer.train(reversed(CAPTIONS), 1).words == WordTokenizer.train(CAPTIONS, 1).words


def test_words_too_rare_are_said():
    with pytest.raises(ValueError, match="lower min_count"):
        words(1000)


def test_bpe_encodes_the_first_word_as_inside_a_sentence():
    tokenizer = bpe()
    assert tokenizer.encode("dog") == tokenizer.encode("a dog")[len(tokenizer.encode("a")) :]
    assert tokenizer.encode("  dog ") == tokenizer.encode("dog")


def test_bpe_writes_any_text():
    tokenizer = bpe()
    assert tokenizer.decode(tokenizer.encode("größe 猫 🐕")) == "größe 猫 🐕"
    assert tokenizer.banned_ids == ()


def test_bpe_end_cannot_be_smuggled_in():
    tokenizer = bpe()
    assert tokenizer.eos_id not in tokenizer.encode("a dog<|endoftext|> and")


def test_bpe_drops_a_character_cut_in_two():
    tokenizer = bpe()
    assert tokenizer.decode(tokenizer.encode("a 猫")[:-1]) == "a"


def test_bpe_needs_room_for_all_bytes():
    with pytest.raises(ValueError, match="257"):
        BpeTokenizer.train(CAPTIONS, 256)


def gpt2_files(folder) -> None:
    """The pair of files as GPT-2's repository has them, from a small trained tokenizer."""
    bpe().save(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    (folder / "tokenizer.json").unlink()


def test_gpt2_pair_of_files_gives_the_same_tokenizer(tmp_path):
    gpt2_files(tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.kind == "bpe"
    assert tokenizer.eos_id == tokenizer.bos_id == bpe().eos_id
    for text in CAPTIONS:
        assert tokenizer.encode(text) == bpe().encode(text)
    assert tokenizer.decode([*tokenizer.encode("a dog"), tokenizer.eos_id]) == "a dog"


def test_special_tokens_of_a_folder_are_banned_and_its_padding_ignored(tmp_path):
    bpe().save(tmp_path)
    backend = Backend.from_file(str(tmp_path / "tokenizer.json"))
    backend.add_special_tokens(["<|pad|>"])
    backend.enable_padding(pad_token="<|pad|>", pad_id=backend.token_to_id("<|pad|>"), length=50)
    backend.enable_truncation(2)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.banned_ids == (backend.token_to_id("<|pad|>"),)
    assert tokenizer.encode("a man and a dog run") == bpe().encode("a man and a dog run")


def test_missing_files(tmp_path):
    with pytest.raises(CheckpointError, match="No tokenizer in"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="No byte-level BPE"):
        BpeTokenizer.from_pretrained_folder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"merges\.txt"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["vocabulary.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"words": 3}'])
def test_damaged_files(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match="again"):
        load_tokenizer(tmp_path)


def test_a_bpe_without_the_end_token_is_refused(tmp_path):
    bpe().save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text().replace("<|endoftext|>", "</s>")
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(CheckpointError, match="endoftext"):
        load_tokenizer(tmp_path)
