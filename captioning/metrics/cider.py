"""CIDEr-D (Vedantam et al. 2015), equal to pycocoevalcap's scorer, which calls it CIDEr.

The document frequencies are fixed when a scorer is created, so that it can serve as a reward (self-critical training)
for any captions, and can be written to a file. Scores with different document frequencies, such as those of a subset,
are not comparable. N-grams are represented as their tokens joined by spaces.
"""

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Tokens = Sequence[str]

_ORDER = 4
SIGMA = 6.0
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class CiderVector:
    """The TF-IDF weights of a caption's n-grams and their norms, by order."""

    weights: tuple[dict[str, float], ...]
    norms: tuple[float, ...]
    length: int
    """The number of bigrams, which the reference scorer uses as the caption's length."""


class CiderD:
    """Scores captions with the document frequencies of `references`, which holds each image's captions."""

    document_frequency: dict[str, int]
    """The number of images whose references contain an n-gram, if more than one; others weigh like unseen n-grams."""
    num_images: int
    source: str
    """A name for the references, given by the caller and kept in the file to recognise it by."""

    def __init__(self, references: Iterable[Sequence[Tokens]], *, source: str = "") -> None:
        counts: Counter[str] = Counter()
        num_images = 0
        for captions in references:
            num_images += 1
            counts.update({ngram for tokens in captions for ngrams in _ngrams(tokens) for ngram in ngrams})
        self._set(counts, num_images, source)

    @classmethod
    def from_frequencies(cls, counts: Mapping[str, int], num_images: int, *, source: str = "") -> "CiderD":
        """A scorer with given document frequencies."""
        scorer = cls.__new__(cls)
        scorer._set(counts, num_images, source)
        return scorer

    @classmethod
    def from_bytes(cls, data: bytes) -> "CiderD":
        """The inverse of `to_bytes`. Raises `ValueError` for other data."""
        try:
            content = json.loads(gzip.decompress(data))
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}, not {_FORMAT_VERSION}")
            return cls.from_frequencies(content["document_frequency"], content["num_images"], source=content["source"])
        except (OSError, EOFError, zlib.error, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are not document frequencies ({error!r})") from error

    def to_bytes(self) -> bytes:
        """The document frequencies as a compact file, deterministically."""
        content = {
            "format_version": _FORMAT_VERSION,
            "source": self.source,
            "num_images": self.num_images,
            "document_frequency": self.document_frequency,
        }
        text = json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return gzip.compress(text.encode(), compresslevel=6, mtime=0)

    def _set(self, counts: Mapping[str, int], num_images: int, source: str) -> None:
        if num_images < 1:
            raise ValueError("CIDEr-D needs the references of at least one image for its document frequencies.")
        # Unseen n-grams weigh like those of one image, which are three in four: do not store them.
        self.document_frequency = {ngram: count for ngram, count in counts.items() if count > 1}
        self.num_images = num_images
        self.source = source
        self._log_images = math.log(num_images)

    def score(self, candidate: Tokens, references: Sequence[Tokens]) -> float:
        """CIDEr-D in 0..10 of one caption; papers multiply by 100."""
        return self.score_vector(self.vector(candidate), [self.vector(reference) for reference in references])

    def vector(self, tokens: Tokens) -> CiderVector:
        """The caption's TF-IDF vector for `score_vector`, which can be cached."""
        frequency, log_images, log = self.document_frequency.get, self._log_images, math.log
        weights: list[dict[str, float]] = []
        norms: list[float] = []
        for ngrams in _ngrams(tokens):
            of_order = {ngram: log_images - log(frequency(ngram, 1)) for ngram in ngrams}
            if len(of_order) < len(ngrams):
                for ngram, count in Counter(ngrams).items():
                    of_order[ngram] *= count
            weights.append(of_order)
            norms.append(math.sqrt(sum([weight * weight for weight in of_order.values()])))
        return CiderVector(tuple(weights), tuple(norms), max(0, len(tokens) - 1))

    def score_vector(self, candidate: CiderVector, references: Sequence[CiderVector]) -> float:
        """As `score`, given the vectors."""
        return 10.0 * sum([_similarity(candidate, reference) for reference in references]) / len(references) / _ORDER


def _ngrams(tokens: Tokens) -> list[list[str]]:
    """The n-grams by order, as they occur in the text."""
    orders = [list(tokens)]
    for order in range(1, _ORDER):
        orders.append([f"{begin} {end}" for begin, end in zip(orders[-1], tokens[order:], strict=False)])
    return orders


def _similarity(candidate: CiderVector, reference: CiderVector) -> float:
    """Sum over the orders of the clipped cosine, times a Gaussian of the difference in length."""
    total = 0.0
    for order in range(_ORDER):
        ours, theirs = candidate.weights[order], reference.weights[order]
        # Iterate in the caption's order, so that rounding is the same in every process.
        shared = [ngram for ngram in ours if ngram in theirs]
        if not shared:
            # No longer n-gram can be shared either.
            break
        product = 0.0
        for ngram in shared:
            weight = theirs[ngram]
            product += min(ours[ngram], weight) * weight
        scale = candidate.norms[order] * reference.norms[order]
        total += product / scale if scale != 0 else product
    return total * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
