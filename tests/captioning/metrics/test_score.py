"""All metrics of a set of captions together."""

import shutil

import pytest

from captioning.errors import InputError
from captioning.metrics import meteor
from captioning.metrics.score import score_captions

REFERENCES = {
    "1.jpg": ["A man's dog runs on the beach.", "A brown dog is running."],
    "2.jpg": ["Two children play football in a park .", "Kids playing soccer."],
    "3.jpg": ["A woman in a red dress sings on stage."],
}
CAPTIONS = {
    "1.jpg": "a dog runs on the beach",
    "2.jpg": "two children play football in a park",
    "3.jpg": "a dog runs on the beach",
}


def test_a_perfect_set_scores_full_marks_and_the_order_is_free() -> None:
    perfect = {image: texts[0] for image, texts in REFERENCES.items()}
    scores = score_captions(perfect, REFERENCES)
    assert scores.bleu == pytest.approx((100,) * 4, abs=1e-6)
    assert scores.rouge_l == pytest.approx(100)
    assert scores.num_images == 3
    backwards = {image: REFERENCES[image] for image in reversed(REFERENCES)}
    assert score_captions(perfect, backwards) == scores


def test_what_is_reported() -> None:
    scores = score_captions(CAPTIONS, REFERENCES)
    assert scores.distinct == pytest.approx(200 / 3)
    assert scores.mean_length == pytest.approx(19 / 3)
    assert scores.cider_d == pytest.approx(sum(scores.cider_d_of.values()) / 3)
    assert scores.cider_d_of["2.jpg"] > 100 > scores.cider_d_of["3.jpg"]
    assert scores.words == 12
    # The third photo has the first one's caption, which finds the first photo before the third.
    assert scores.rank_of == {"1.jpg": 1, "2.jpg": 1, "3.jpg": 2}
    assert scores.recall_at(1) == pytest.approx(200 / 3)
    summary = scores.summary()
    assert list(summary) == [
        *("bleu_1", "bleu_2", "bleu_3", "bleu_4"),
        *("rouge_l", "cider_d", "recall_at_1", "recall_at_10"),
        *("distinct", "words", "mean_length", "repetitions", "truncated", "unknown", "num_images"),
    ]
    assert 100 > summary["bleu_1"] > summary["bleu_4"] > 0


def test_flaws_are_counted() -> None:
    captions = {"1.jpg": "a dog dog runs", "2.jpg": "two children in the", "3.jpg": "a woman sings"}
    summary = score_captions(captions, REFERENCES).summary()
    assert (summary["repetitions"], summary["truncated"], summary["unknown"]) == (1, 1, 0)
    told = score_captions(captions, REFERENCES, unended={"2.jpg", "3.jpg"}, unknown={"1.jpg"}).summary()
    assert (told["repetitions"], told["truncated"], told["unknown"]) == (1, 2, 1)


def test_captions_and_references_must_match() -> None:
    with pytest.raises(InputError, match=r"'3\.jpg'"):
        score_captions({"1.jpg": "a", "2.jpg": "b"}, REFERENCES)
    with pytest.raises(InputError, match="no captions"):
        score_captions({}, {})
    with pytest.raises(InputError, match="no reference captions"):
        score_captions({"1.jpg": "a"}, {"1.jpg": []})


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_meteor_is_that_of_the_reference_wrapper() -> None:
    # Recorded from pycocoevalcap 1.2's Meteor on the same tokens.
    captions = CAPTIONS | {"3.jpg": ""}
    assert score_captions(captions, REFERENCES, meteor=True).meteor == pytest.approx(33.45736379379906, abs=1e-9)


def test_meteor_without_java_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="Java"):
        score_captions(CAPTIONS, REFERENCES, meteor=True)


def test_meteor_without_the_extra_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meteor.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"captioning\[meteor\]"):
        score_captions(CAPTIONS, REFERENCES, meteor=True)
