import numpy as np
import pyarrow as pa
import pytest

from captioning.run import duplicates, hashing
from captioning.run.digests import find
from captioning.run.duplicates import DuplicateFinder, is_in
from captioning.run.hashing import text_digests


def names(count: int) -> list[str]:
    return [f"{number // 1000:05d}/IMG_{number:08d}.jpg" for number in range(count)]


def test_equal_strings_have_equal_digests_at_any_position() -> None:
    texts = ["", "a", "a\0", "\0", "12345678", "123456789", "é" * 100, "é" * 100 + "x", "12345678" * 2]
    found = text_digests(pa.array(texts))
    assert len({digest.tobytes() for digest in found}) == len(texts)
    one_by_one = np.concatenate([text_digests(pa.array([text])) for text in texts])
    assert (found == one_by_one).all()
    padded = pa.array(["x" * 5, *texts, "y" * 50])
    assert (text_digests(padded.slice(1, len(texts))) == found).all()
    chunks = pa.chunked_array([padded.slice(1, 4), padded.slice(5, len(texts) - 4)])
    assert (text_digests(chunks) == found).all()
    assert (text_digests(pa.array(texts, pa.large_string())) == found).all()
    assert len(text_digests(pa.array([], pa.string()))) == 0


def test_digests_of_similar_strings_are_uniform(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_BATCH", 1000)
    found = text_digests(pa.array(names(50_000)), key=1)
    for lane in ("high", "low"):
        numbers = np.ascontiguousarray(found[lane])
        assert len(np.unique(numbers)) == 50_000
        shares = np.unpackbits(numbers.view(np.uint8)).reshape(-1, 64).mean(axis=0)
        assert (abs(shares - 0.5) < 0.02).all()
    assert (found["high"] != found["low"]).all()
    assert not (text_digests(pa.array(names(10)), key=2)["high"] == found["high"][:10]).any()


def test_one_changed_bit_changes_half_of_the_digest() -> None:
    text = b"photos/2024/a-very-ordinary-name.jpg"
    other = [bytes([*text[:at], text[at] ^ 1, *text[at + 1 :]]).decode() for at in range(len(text))]
    found = text_digests(pa.array([text.decode(), *other]))
    for lane in ("high", "low"):
        flipped = np.bitwise_count(found[lane][1:] ^ found[lane][0])
        assert (abs(flipped.astype(int) - 32) < 22).all()


def test_digests_are_found_among_many() -> None:
    every = text_digests(pa.array(names(3000)))
    ordered = every[np.argsort(every["high"])]
    wanted = text_digests(pa.array([*names(3000)[::-7], "not there"]))
    at = find(ordered, wanted)
    assert at[-1] == -1
    assert (ordered[at[:-1]] == wanted[:-1]).all()


@pytest.mark.parametrize("held", [10_000, 64])
def test_duplicates_are_among_the_candidates(monkeypatch: pytest.MonkeyPatch, held: int) -> None:
    monkeypatch.setattr(duplicates, "_MAX_IN_MEMORY", held)
    found = DuplicateFinder()
    texts = names(1000)
    for at in range(0, 1000, 50):
        found.add(pa.array(texts[at : at + 50]))
    found.add(pa.array([texts[3], texts[700], texts[3]]))
    candidates = found.candidates()
    looked = is_in(pa.array(texts), candidates)
    assert [texts[at] for at in np.flatnonzero(looked)] == [texts[3], texts[700]]
    assert len(found.candidates()) == 0


def test_no_candidates_without_duplicates() -> None:
    found = DuplicateFinder()
    assert len(found.candidates()) == 0
    found.add(pa.array(names(10)))
    candidates = found.candidates()
    assert len(candidates) == 0
    assert not is_in(pa.array(names(10)), candidates).any()
