"""The most frequent texts of a long stream, and near-identical captions among them, in bounded memory."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from captioning.data.words import split_words

_TALLY_LIMIT = 400_000
_VARIANTS_SHOWN = 4

#: Stop words: too common to say anything about the pictures.
SMALL_WORDS = frozenset(
    {"a", "an", "the", "this", "that", "there", "some"}
    | {"and", "or", "as", "while", "who", "with", "without", "of"}
    | {"at", "by", "for", "from", "in", "into", "on", "over", "to", "up", "down", "out"}
    | {"are", "be", "being", "has", "have", "is", "was"}
    | {"he", "her", "him", "his", "it", "its", "she", "their", "them", "they"}
)


@dataclass(frozen=True)
class TopTexts:
    """The most frequent texts with their counts; `distinct` is a lower bound when `exact` is False."""

    top: tuple[tuple[str, int], ...]
    distinct: int
    exact: bool


@dataclass(frozen=True)
class NearDuplicateGroup:
    """Different captions with the same words, ignoring stop words and order.

    `captions` and `images` are numbers; `shown` has the most frequent captions with their numbers of images.
    """

    images: int
    captions: int
    shown: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class NearDuplicates:
    """The largest groups, and the total number of `groups` and of `images` in them."""

    top: tuple[NearDuplicateGroup, ...]
    groups: int
    images: int


class Tally:
    """Counts texts; rare ones are dropped when there are too many."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._distinct = 0
        self._exact = True

    def add(self, texts: Any) -> None:
        """Count a column of texts (N,), except empty ones."""
        self.update({found["values"]: found["counts"] for found in pc.value_counts(texts).to_pylist()})

    def update(self, counts: Mapping[str | None, int]) -> None:
        """Add to the counts."""
        for text, count in counts.items():
            if text:
                self._counts[text] += count
        if len(self._counts) > _TALLY_LIMIT:
            self._distinct, self._exact = max(self._distinct, len(self._counts)), False
            self._counts = Counter(dict(self._counts.most_common(_TALLY_LIMIT // 2)))

    def result(self, number: int, without: frozenset[str] = frozenset()) -> TopTexts:
        """The `number` most frequent texts, except those in `without`."""
        kept = ((text, count) for text, count in self._counts.items() if text not in without)
        top = sorted(kept, key=lambda item: (-item[1], item[0]))[:number]
        return TopTexts(tuple(top), max(self._distinct, len(self._counts)), self._exact)

    def near_duplicates(self, number: int) -> NearDuplicates:
        """The `number` largest groups among the counted captions, by images."""
        groups: defaultdict[str, list[str]] = defaultdict(list)
        for text in self._counts:
            groups[content_words(text)].append(text)
        found = []
        for words, texts in groups.items():
            if words and len(texts) > 1:
                counted = sorted(((text, self._counts[text]) for text in texts), key=lambda item: (-item[1], item[0]))
                found.append(
                    NearDuplicateGroup(sum(n for _, n in counted), len(texts), tuple(counted[:_VARIANTS_SHOWN]))
                )
        found.sort(key=lambda group: (-group.images, group.shown))
        return NearDuplicates(tuple(found[:number]), len(found), sum(group.images for group in found))

    def counts(self) -> Mapping[str, int]:
        """The counts that are kept."""
        return self._counts


def content_words(text: str) -> str:
    """A caption's distinct words, sorted, without stop words and punctuation; equal for near-identical captions."""
    return " ".join(sorted(set(split_words(text)) - SMALL_WORDS - {",", "."}))
