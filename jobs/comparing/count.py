"""What two runs have in common, counted over joined rows in one pass and bounded memory.

Captions are compared as the metrics do, as tokens (`ptb_tokenize`). Knows rows and words; nothing of
files and pages.
"""

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captioning.metrics.cider import CiderD
from captioning.metrics.tokenize import ptb_tokenize
from jobs.comparing.join import Joined, failed
from jobs.reporting.tally import SMALL_WORDS, Tally

#: How many shared images CIDEr-D is computed on at most: its document frequencies are held in memory.
CIDER_IMAGES = 50_000
#: Bins of the histogram of overlaps, each a twentieth wide; all of 1 are in the last.
OVERLAP_BINS = 20

_EXAMPLES = 10
_WORDS = 24


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is counted of one run's rows."""

    rows: int
    errors: dict[str, int]
    """Error rows by class."""
    mean_score: float | None
    mean_words: float | None
    only: int
    """Rows whose image the other run does not have, the first of them in `only_examples`."""
    only_examples: tuple[str, ...]
    cider_d: float | None
    """CIDEr-D, in percent, of this run's captions with the other's as their only references."""
    words: tuple[tuple[str, int, int], ...]
    """Words that this run uses more than the other: word, images here, images there."""


@dataclass(frozen=True)
class ErrorPair:
    """Images of an outcome in each run, `ok` or an error class, at least one an error."""

    outcomes: tuple[str, str]
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """An image that both runs captioned."""

    image_id: str
    uri: str
    size_bytes: int | None
    captions: tuple[str, str]
    scores: tuple[float, float]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Everything counted; `shared` images are in both runs, `captioned` of them have two captions."""

    sides: tuple[Side, Side]
    shared: int
    captioned: int
    identical: int
    """Captions that are equal letter by letter."""
    same_tokens: int
    """Captions that are equal as tokens: but for case and punctuation."""
    mean_overlap: float | None
    """Mean of `overlap` over captioned images."""
    overlaps: tuple[int, ...]
    error_pairs: tuple[ErrorPair, ...]
    cider_images: int
    """How many images CIDEr-D is of."""
    widest: tuple[Pair, ...]

    @property
    def different(self) -> int:
        """Images whose two captions are not equal."""
        return self.captioned - self.identical

    @property
    def errors_differ(self) -> int:
        """Images that failed in one run alone, or with another class."""
        return sum(pair.count for pair in self.error_pairs if pair.outcomes[0] != pair.outcomes[1])


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """Shared tokens of two captions, 0 to 1 (Dice: twice the shared ones over all, repeats counted); 1 for none."""
    total = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / total if total else 1.0


def count(buckets: Iterable[Joined], *, widest: int, cider_images: int = CIDER_IMAGES) -> Counts:
    """Count joined rows; keep the `widest` disagreements: fewest shared words, then those of which both are surest."""
    counting = _Counting(widest, cider_images)
    for bucket in buckets:
        counting.add(bucket)
    return counting.counts()


class _SideCounting:
    def __init__(self) -> None:
        self.rows = self.only = self.captioned = self.words = 0
        self.score = 0.0
        self.errors: Counter[str] = Counter()
        self.examples: list[str] = []
        self.vocabulary = Tally()

    def add(self, shared: Any, alone: Any) -> None:
        self.rows += shared.num_rows + alone.num_rows
        self.only += alone.num_rows
        self.examples += alone["image_id"].slice(0, _EXAMPLES - len(self.examples)).to_pylist()
        for rows in (shared, alone):
            classes = rows.filter(failed(rows))["error_class"].to_pylist()
            self.errors.update(name or "unknown" for name in classes)


class _Counting:
    def __init__(self, widest: int, cider_images: int) -> None:
        self._sides = (_SideCounting(), _SideCounting())
        self._shared = self._captioned = self._identical = self._same = 0
        self._overlap = 0.0
        self._overlaps = np.zeros(OVERLAP_BINS, dtype=np.int64)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._pair_examples: dict[tuple[str, str], list[str]] = {}
        self._most, self._cider_images = widest, cider_images
        # Heaps whose least item is the first to go.
        self._widest: list[tuple[float, float, float, int, Pair]] = []
        self._drawn: list[tuple[int, int, tuple[str, str]]] = []

    def add(self, bucket: Joined) -> None:
        for side, shared, alone in zip(self._sides, bucket.both, bucket.alone, strict=True):
            side.add(shared, alone)
        one, other = bucket.both
        self._shared += one.num_rows
        bad = failed(one), failed(other)
        self._add_errors(*(rows.filter(bad[0] | bad[1]) for rows in bucket.both))
        good = ~(bad[0] | bad[1])
        self._add_captions(one.filter(good), other.filter(good), bucket.digests["high"][good])

    def _add_errors(self, one: Any, other: Any) -> None:
        outcomes = [
            [name or "unknown" if status != "ok" else "ok" for status, name in zip(*columns, strict=True)]
            for columns in ((rows["status"].to_pylist(), rows["error_class"].to_pylist()) for rows in (one, other))
        ]
        for image_id, *pair in zip(one["image_id"].to_pylist(), *outcomes, strict=True):
            key = (pair[0], pair[1])
            self._pairs[key] += 1
            examples = self._pair_examples.setdefault(key, [])
            if len(examples) < _EXAMPLES:
                examples.append(image_id)

    def _add_captions(self, one: Any, other: Any, digests: Any) -> None:
        self._captioned += one.num_rows
        columns = [one[name].to_pylist() for name in ("image_id", "uri", "size_bytes", "caption", "score")]
        columns += [other[name].to_pylist() for name in ("caption", "score")]
        counts: tuple[Counter[str | None], Counter[str | None]] = (Counter(), Counter())
        for image_id, uri, size, ours, our_score, theirs, their_score, digest in zip(*columns, digests, strict=True):
            texts = (ours or "", theirs or "")
            scores = (_number(our_score), _number(their_score))
            tokens = [ptb_tokenize(texts[0])]
            tokens.append(tokens[0] if texts[0] == texts[1] else ptb_tokenize(texts[1]))
            shared = overlap(*tokens) if tokens[0] != tokens[1] else 1.0
            self._identical += texts[0] == texts[1]
            self._same += tokens[0] == tokens[1]
            self._overlap += shared
            self._overlaps[min(int(shared * OVERLAP_BINS), OVERLAP_BINS - 1)] += 1
            for side, seen, its, score in zip(self._sides, counts, tokens, scores, strict=True):
                side.captioned += 1
                side.words += len(its)
                side.score += score if math.isfinite(score) else 0.0
                seen.update(set(its))
            self._draw(int(digest), texts)
            if tokens[0] != tokens[1]:
                pair = Pair(image_id, uri, size, texts, scores, shared)
                self._keep(pair, tokens, int(digest))
        for side, seen in zip(self._sides, counts, strict=True):
            side.vocabulary.update(seen)

    def _keep(self, pair: Pair, tokens: Sequence[Sequence[str]], digest: int) -> None:
        """Small words say nothing about a photo, so that all others count first."""
        content = overlap(*([token for token in its if token not in SMALL_WORDS] for its in tokens))
        item = (-content, -pair.overlap, min(pair.scores), digest, pair)
        if len(self._widest) < self._most:
            heapq.heappush(self._widest, item)
        elif self._most and item[:4] > self._widest[0][:4]:
            heapq.heapreplace(self._widest, item)

    def _draw(self, digest: int, texts: tuple[str, str]) -> None:
        """Keep the images of the least digests: as good as drawn, and the same ones each time."""
        item = (-digest, self._captioned, texts)
        if len(self._drawn) < self._cider_images:
            heapq.heappush(self._drawn, item)
        elif self._cider_images and item[0] > self._drawn[0][0]:
            heapq.heapreplace(self._drawn, item)

    def counts(self) -> Counts:
        one, other = self._sides
        forth, back = _cider(sorted(self._drawn, reverse=True))
        pairs = [ErrorPair(key, number, tuple(self._pair_examples[key])) for key, number in self._pairs.items()]
        return Counts(
            sides=(_side(one, other, forth), _side(other, one, back)),
            shared=self._shared,
            captioned=self._captioned,
            identical=self._identical,
            same_tokens=self._same,
            mean_overlap=self._overlap / self._captioned if self._captioned else None,
            overlaps=tuple(self._overlaps.tolist()),
            error_pairs=tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.outcomes))),
            cider_images=len(self._drawn),
            widest=tuple(item[4] for item in sorted(self._widest, key=lambda item: item[:4], reverse=True)),
        )


def _side(side: _SideCounting, other: _SideCounting, cider_d: float | None) -> Side:
    here, there = side.vocabulary.counts(), other.vocabulary.counts()
    more = ((word, count, there.get(word, 0)) for word, count in here.items() if word not in SMALL_WORDS)
    more = (item for item in more if item[1] > item[2])
    return Side(
        rows=side.rows,
        errors=dict(sorted(side.errors.items())),
        mean_score=side.score / side.captioned if side.captioned else None,
        mean_words=side.words / side.captioned if side.captioned else None,
        only=side.only,
        only_examples=tuple(side.examples),
        cider_d=cider_d,
        words=tuple(heapq.nsmallest(_WORDS, more, key=lambda item: (item[2] - item[1], item[0]))),
    )


def _cider(drawn: Sequence[tuple[int, int, tuple[str, str]]]) -> tuple[float | None, float | None]:
    """CIDEr-D of each run's captions with the other's as references, the frequencies being those of the references."""
    if not drawn:
        return None, None
    tokens = [(ptb_tokenize(texts[0]), ptb_tokenize(texts[1])) for _, _, texts in drawn]
    found = []
    for candidate, reference in ((0, 1), (1, 0)):
        scorer = CiderD([[pair[reference]] for pair in tokens])
        found.append(100 * sum(scorer.score(pair[candidate], [pair[reference]]) for pair in tokens) / len(tokens))
    return found[0], found[1]


def _number(value: float | None) -> float:
    return float(value) if value is not None and math.isfinite(value) else -math.inf
