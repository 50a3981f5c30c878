"""The human baseline: each caption in turn against the photo's others."""

import pytest

from captioning.errors import InputError
from captioning.metrics.people import has_people, people_scores
from captioning.metrics.score import score_captions
from tests.captioning.metrics.captions import written_corpus


def test_it_is_the_mean_over_the_choices() -> None:
    _, references = written_corpus(0, images=12)
    summaries = [
        score_captions(
            {image: texts[choice] for image, texts in references.items()},
            {image: texts[:choice] + texts[choice + 1 :] for image, texts in references.items()},
        ).summary()
        for choice in range(5)
    ]
    people = people_scores(references)
    assert people == pytest.approx({key: sum(each[key] for each in summaries) / 5 for key in summaries[0]})
    # No caption is scored against itself.
    assert people["bleu_4"] < 90
    assert people["num_images"] == 12


def test_photos_with_fewer_captions_begin_again() -> None:
    references = {"1.jpg": ["a dog runs", "a dog is running"], "2.jpg": ["two men", "men sit", "two men sit"]}
    chosen = [{"1.jpg": 0, "2.jpg": 0}, {"1.jpg": 1, "2.jpg": 1}, {"1.jpg": 0, "2.jpg": 2}]
    expected = []
    for at in chosen:
        captions = {image: texts[at[image]] for image, texts in references.items()}
        others = {image: [t for n, t in enumerate(texts) if n != at[image]] for image, texts in references.items()}
        expected.append(score_captions(captions, others).cider_d)
    assert people_scores(references)["cider_d"] == pytest.approx(sum(expected) / 3)


def test_a_photo_with_one_caption_has_none_to_spare() -> None:
    assert has_people({"1.jpg": ["a", "b"]})
    assert not has_people({})
    single = {"1.jpg": ["a", "b"], "2.jpg": ["a"]}
    assert not has_people(single)
    with pytest.raises(InputError, match=r"'2\.jpg'"):
        people_scores(single)
