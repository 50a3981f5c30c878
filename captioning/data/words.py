"""Splits captions into lower-case words in the style of the Penn Treebank, and joins words into a caption.

For languages with spaces between words. Clitics become words of their own (`man 's`, `is n't`); hyphenated words,
numbers and initials stay whole. Of punctuation, only commas and full stops between sentences are kept, since quotes,
brackets and final punctuation add nothing to a caption.
"""

import re
import unicodedata
from collections.abc import Iterable

from captioning.unicode_marks import MARKS

_LETTERS = rf"[^\W_](?:[^\W_]|[{MARKS}])*"
_APOSTROPHES = str.maketrans({"‘": "'", "’": "'", "`": "'", "´": "'", "ʼ": "'"})
_TOKEN = re.compile(
    r"(?:[^\W\d_]\.){2,}"  # initials: u.s.
    r"|\d+(?:[.,:/]\d+)+(?=[^\w]|$)"  # numbers and times: 1,000 10:30 1/2
    r"|'(?:s|re|ve|ll|d|m)\b"  # a clitic that already stands alone
    rf"|{_LETTERS}(?:[-']{_LETTERS})*"  # words: t-shirt o'clock dog's
    r"|[&%$]"
    r"|[,;:]"
    r"|[.!?]"
)
_CLITIC = re.compile(r"(.+?)(n't|'(?:s|re|ve|ll|d|m))")
_ATTACHED = re.compile(r"n't|'(?:s|re|ve|ll|d|m)|[,.%]")
_GAP_BEFORE = re.compile(r"\s+(?=[.,;:!?%](?:\s|$)|(?:'(?:s|re|ve|ll|d|m)|n't)\b)")


def split_words(text: str) -> list[str]:
    """The words of a caption, lower-case: `The man's T-shirt.` gives the, man, 's, t-shirt."""
    words: list[str] = []
    for token in _TOKEN.findall(unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()):
        if token in ",;:":
            token = ","
        elif token in ".!?":
            token = "."
        elif clitic := _CLITIC.fullmatch(token):
            words += clitic.groups()
            continue
        if token in ",." and (not words or words[-1] in ",."):
            continue
        words.append(token)
    while words and words[-1] in ",.":
        words.pop()
    return words


def join_words(words: Iterable[str]) -> str:
    """A readable caption from words: clitics and punctuation join the word before them."""
    pieces: list[str] = []
    for word in words:
        if pieces and not _ATTACHED.fullmatch(word) and pieces[-1] != "$":
            pieces.append(" ")
        pieces.append(word)
    return "".join(pieces)


def tidy(text: str) -> str:
    """Text with single spaces, none before punctuation and clitics: `a man 's hat .` is `a man's hat.`"""
    return _GAP_BEFORE.sub("", " ".join(text.split()))
