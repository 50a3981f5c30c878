import pytest

from captioning.data.words import join_words, split_words, tidy


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("The man's T-shirt.", ["the", "man", "'s", "t-shirt"]),
        ("Two dogs , running .", ["two", "dogs", ",", "running"]),
        ("A man 's hat", ["a", "man", "'s", "hat"]),
        ("He isn't looking; they can't", ["he", "is", "n't", "looking", ",", "they", "ca", "n't"]),
        ("5 o'clock at 10:30", ["5", "o'clock", "at", "10:30"]),
        ("A U.S. flag", ["a", "u.s.", "flag"]),
        ('A sign that says "STOP!"', ["a", "sign", "that", "says", "stop"]),
        ("Mother & child (smiling)", ["mother", "&", "child", "smiling"]),
        ("He waits. She leaves.", ["he", "waits", ".", "she", "leaves"]),
        ("The players' bench", ["the", "players", "bench"]),
        ("a man’s café", ["a", "man", "'s", "café"]),
        ("well-dressed, 20-year-old", ["well-dressed", ",", "20-year-old"]),
        ("एक आदमी हिंदी किताब", ["एक", "आदमी", "हिंदी", "किताब"]),
        ("কুকুর দৌড়াচ্ছে।", ["কুকুর", "দৌড়াচ্ছে"]),
        ("الرَّجُل يقرأ", ["الرَّجُل", "يقرأ"]),
        ("I ❤️ my dog 1️⃣", ["i", "my", "dog", "1"]),
        ("", []),
        (" . , ! ", []),
        ("<unk> & <bos>", ["unk", "&", "bos"]),
    ],
)
def test_split(caption, words):
    assert split_words(caption) == words


@pytest.mark.parametrize(
    "text",
    [
        "a man's hat, and a dog",
        "he isn't there. they can't come",
        "a 20-year-old in a t-shirt",
        "mother & child at 10:30",
        "it costs $5 or 50% more",
    ],
)
def test_join_gives_readable_text_back(text):
    assert join_words(split_words(text)) == text


def test_join_never_begins_with_a_space():
    assert join_words(["'s", "dog"]) == "'s dog"
    assert join_words([]) == ""


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("a man 's hat .", "a man's hat."),
        ("  two   dogs , running !", "two dogs, running!"),
        ("he is n't here", "he isn't here"),
        ("a 'small dog'", "a 'small dog'"),
        ("pay .5 dollars", "pay .5 dollars"),
    ],
)
def test_tidy(text, tidied):
    assert tidy(text) == tidied
