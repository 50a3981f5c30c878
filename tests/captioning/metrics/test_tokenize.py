"""Tokenisation against what the Java tokeniser gave (recorded), and against itself where it is there."""

import shutil

import pytest

from captioning.metrics.tokenize import ptb_tokenize

# Text, and Stanford PTBTokenizer 3.4.1's output with the COCO evaluation's punctuation dropped.
RECORDED = [
    ("", ""),
    ("  ", ""),
    ("'", ""),
    ('""', ""),
    ("A man , in a blue shirt , is standing on a ladder .", "a man in a blue shirt is standing on a ladder"),
    ("A man's hat isn't red.", "a man 's hat is n't red"),
    ("a man 's hat is n't red", "a man 's hat is n't red"),
    ("The dogs' toys (three of them) are here...", "the dogs toys -lrb- three of them -rrb- are here"),
    ('He said "hello" to Mr. Smith at 10:30 a.m. in the U.S.', "he said hello to mr. smith at 10:30 a.m. in the u.s."),
    ("They can't, won't, and shouldn't've gone.", "they ca n't wo n't and should n't 've gone"),
    ("cannot gonna gotta wanna gimme lemme 'tis 'twas", "can not gon na got ta wan na gim me lem me 't is 't was"),
    ("A t-shirt costs $3,000.50, 50% off -- wow!", "a t-shirt costs $ 3,000.50 50 % off wow"),
    ("black-and-white and/or 1/2 3-year-old", "black-and-white and/or 1/2 3-year-old"),
    ("rock 'n' roll o'clock", "rock 'n' roll o'clock"),
    ("a ; b : c , d ? e ! f - g -- h --- i", "a b c d e f g h i"),
    ("[brackets] {braces}", "-lsb- brackets -rsb- -lcb- braces -rcb-"),
    ("#1 & AT&T ; Q&A", "# 1 & at&t q&a"),
    ("“curly quotes” and ‘single’ it’s", "curly quotes and single it 's"),
    ("St. Louis Dr. Who no. 5 vs. 7", "st. louis dr. who no. 5 vs. 7"),
    ("He's they're we've I'll I'd I'm", "he 's they 're we 've i 'll i 'd i 'm"),
    ("the 1990's and 90s '90s", "the 1990 's and 90s '90s"),
    ("wearing an orange U. Miami t-shirt", "wearing an orange u. miami t-shirt"),
    ("Two men.   One dog\tin a café.", "two men one dog in a café"),
    ("the end, or is it...", "the end or is it"),
    ("एक लड़की लाल कपड़े में", "एक लड़की लाल कपड़े में"),
    ("கருப்பு நாய்", "கருப்பு நாய்"),
    ("a cafe\u0301", "a cafe\u0301"),
]


@pytest.mark.parametrize(("text", "expected"), RECORDED)
def test_tokens_are_those_of_the_java_tokeniser(text: str, expected: str) -> None:
    assert ptb_tokenize(text) == expected.split()


@pytest.mark.skipif(shutil.which("java") is None, reason="needs Java")
def test_the_record_is_true() -> None:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [(text, expected) for text, expected in RECORDED if text.strip()]
    java = PTBTokenizer().tokenize({number: [{"caption": text}] for number, (text, _) in enumerate(texts)})
    assert [java[number][0].split() for number in range(len(texts))] == [expected.split() for _, expected in texts]
