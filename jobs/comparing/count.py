"""Counts what two runs have in common, over joined rows, in one pass and bounded memory.

Captions are compared as tokens (`ptb_tokenize`), as in the metrics.
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
from jobs.comparing.join import JoinedBucket, failed
from jobs.reporting.tally import SMALL_WORDS, Tally

#: Most shared images that CIDEr-D is computed on: its document frequencies are held in memory.
CIDER_IMAGES = 50_000
#: Bins of the histogram of overlaps, each a twentieth wide; the last one includes 1.
OVERLAP_BINS = 20

_EXAMPLES = 10
_WORDS = 24


@dataclass(frozen=True, kw_only=True)
class Side:
    """Counts over one run's rows."""

    rows: int
    errors: dict[str, int]
    """Error rows by class."""
    mean_score: float | None
    mean_words: float | None
    only: int
    """Rows whose image the other run does not have; `only_examples` has the first ones."""
    only_examples: tuple[str, ...]
    cider_d: float | None
    """CIDEr-D, in percent, of this run's captions with the other's as their only references."""
    words: tuple[tuple[str, int, int], ...]
    """Words that this run uses more than the other: word, images here, images there."""


@dataclass(frozen=True)
class ErrorPair:
    """Images with this pair of outcomes, `ok` or an error class, at least one of them an error."""

    outcomes: tuple[str, str]
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class CaptionPair:
    """An image that both runs captioned."""

    image_id: str
    uri: str
    size_bytes: int | None
    captions: tuple[str, str]
    scores: tuple[float, float]
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """All counts; `shared` images are in both runs, `captioned` of them have a caption in both."""

    sides: tuple[Side, Side]
    shared: int
    captioned: int
    identical: int
    """Images whose captions are equal character by character."""
    same_tokens: int
    """Images whose captions are equal as tokens, ignoring case and punctuation."""
    mean_overlap: float | None
    """Mean of `overlap` over captioned images."""
    overlaps: tuple[int, ...]
    error_pairs: tuple[ErrorPair, ...]
    cider_images: int
    """The number of images that CIDEr-D is computed on."""
    widest: tuple[CaptionPair, ...]

    @property
    def different(self) -> int:
        """Images whose two captions are not equal."""
        return self.captioned - self.identical

    @property
    def errors_differ(self) -> int:
        """Images that failed in one run only, or with different classes."""
        return sum(pair.count for pair in self.error_pairs if pair.outcomes[0] != pair.outcomes[1])


def overlap(one: Sequence[str], other: Sequence[str]) -> float:
    """The Dice coefficient of two captions' tokens as multisets, 0 to 1; 1 where both are empty."""
    total = len(one) + len(other)
    return 2 * (Counter(one) & Counter(other)).total() / total if total else 1.0


def count(buckets: Iterable[JoinedBucket], *, widest: int, cider_images: int = CIDER_IMAGES) -> Counts:
    """Count joined rows; keep the `widest` disagreements, by fewest shared words, then by the lower of the scores."""
    counting = _RunningCounts(widest, cider_images)
    for bucket in buckets:
        counting.add(bucket)
    return counting.counts()


class _SideCounts:
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


class _RunningCounts:
    def __init__(self, widest: int, cider_images: int) -> None:
        self._sides = (_SideCounts(), _SideCounts())
        self._shared = self._captioned = self._identical = self._same = 0
        self._overlap = 0.0
        self._overlaps = np.zeros(OVERLAP_BINS, dtype=np.int64)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._pair_examples: dict[tuple[str, str], list[str]] = {}
        self._most, self._cider_images = widest, cider_images
        # Heaps: the smallest item is replaced first.
        self._widest: list[tuple[float, float, float, int, CaptionPair]] = []
        self._sampled: list[tuple[int, int, tuple[str, str]]] = []

    def add(self, bucket: JoinedBucket) -> None:
        for side, shared, alone in zip(self._sides, bucket.matched, bucket.unmatched, strict=True):
            side.add(shared, alone)
        one, other = bucket.matched
        self._shared += one.num_rows
        bad = failed(one), failed(other)
        self._add_errors(*(rows.filter(bad[0] | bad[1]) for rows in bucket.matched))
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
            self._sample(int(digest), texts)
            if tokens[0] != tokens[1]:
                pair = CaptionPair(image_id, uri, size, texts, scores, shared)
                self._keep_widest(pair, tokens, int(digest))
        for side, seen in zip(self._sides, counts, strict=True):
            side.vocabulary.update(seen)

    def _keep_widest(self, pair: CaptionPair, tokens: Sequence[Sequence[str]], digest: int) -> None:
        """Stop words say nothing about a photo, so the overlap of all other words counts first."""
        content = overlap(*([token for token in its if token not in SMALL_WORDS] for its in tokens))
        item = (-content, -pair.overlap, min(pair.scores), digest, pair)
        if len(self._widest) < self._most:
            heapq.heappush(self._widest, item)
        elif self._most and item[:4] > self._widest[0][:4]:
            heapq.heapreplace(self._widest, item)

    def _sample(self, digest: int, texts: tuple[str, str]) -> None:
        """Keep the images with the smallest digests: a random sample, but the same one each time."""
        item = (-digest, self._captioned, texts)
        if len(self._sampled) < self._cider_images:
            heapq.heappush(self._sampled, item)
        elif self._cider_images and item[0] > self._sampled[0][0]:
            heapq.heapreplace(self._sampled, item)

    def counts(self) -> Counts:
        one, other = self._sides
        forward, backward = _cider(sorted(self._sampled, reverse=True))
        pairs = [ErrorPair(key, number, tuple(self._pair_examples[key])) for key, number in self._pairs.items()]
        return Counts(
            sides=(_side(one, other, forward), _side(other, one, backward)),
            shared=self._shared,
            captioned=self._captioned,
            identical=self._identical,
            same_tokens=self._same,
            mean_overlap=self._overlap / self._captioned if self._captioned else None,
            overlaps=tuple(self._overlaps.tolist()),
            error_pairs=tuple(sorted(pairs, key=lambda pair: (-pair.count, pair.outcomes))),
            cider_images=len(self._sampled),
            widest=tuple(item[4] for item in sorted(self._widest, key=lambda item: item[:4], reverse=True)),
        )


def _side(side: _SideCounts, other: _SideCounts, cider_d: float | None) -> Side:
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
    """CIDEr-D of each run's captions with the other's as references, which also give the document frequencies."""
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
