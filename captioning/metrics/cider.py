"""CIDEr-D (Vedantam et al. 2015), equal to pycocoevalcap's scorer, which calls it CIDEr.

Document frequencies come from references given once, so that the same scorer can be kept as a
reward (self-critical training) whatever captions it meets, and can be written to a file. Scores
with other document frequencies, those of a subset for instance, are not comparable. Knows tokens
only. An n-gram is its tokens joined by spaces: a token has none.
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
    """A caption as TF-IDF weights of its n-grams, one mapping an order, with their norms."""

    weights: tuple[dict[str, float], ...]
    norms: tuple[float, ...]
    length: int
    """Number of bigrams, which is what the reference scorer takes for the caption's length."""


class CiderD:
    """Scores captions with the document frequencies of `references`: for each image, its captions."""

    document_frequency: dict[str, int]
    """In the references of how many images an n-gram is; left out where in one, which weighs as in none."""
    num_images: int
    source: str
    """What was counted, as told; kept in the file, so that one of other references is known."""

    def __init__(self, references: Iterable[Sequence[Tokens]], *, source: str = "") -> None:
        counts: Counter[str] = Counter()
        num_images = 0
        for captions in references:
            num_images += 1
            counts.update({ngram for tokens in captions for ngrams in _ngrams(tokens) for ngram in ngrams})
        self._set(counts, num_images, source)

    @classmethod
    def from_frequencies(cls, counts: Mapping[str, int], num_images: int, *, source: str = "") -> "CiderD":
        """The scorer of references that were counted before: n-grams to the number of images that have them."""
        scorer = cls.__new__(cls)
        scorer._set(counts, num_images, source)
        return scorer

    @classmethod
    def from_bytes(cls, data: bytes) -> "CiderD":
        """The scorer that `to_bytes` wrote. Raises `ValueError` for anything else."""
        try:
            content = json.loads(gzip.decompress(data))
            if content["format_version"] != _FORMAT_VERSION:
                raise ValueError(f"format version {content['format_version']}, not {_FORMAT_VERSION}")
            return cls.from_frequencies(content["document_frequency"], content["num_images"], source=content["source"])
        except (OSError, EOFError, zlib.error, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"these are no document frequencies ({error!r})") from error

    def to_bytes(self) -> bytes:
        """The document frequencies as a compact file; the same ones always give the same bytes."""
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
        # An unseen n-gram weighs as one seen once, and three in four are seen once: they need no memory.
        self.document_frequency = {ngram: count for ngram, count in counts.items() if count > 1}
        self.num_images = num_images
        self.source = source
        self._log_images = math.log(num_images)

    def score(self, candidate: Tokens, references: Sequence[Tokens]) -> float:
        """CIDEr-D in 0..10 of one caption; papers multiply by 100."""
        return self.score_vector(self.vector(candidate), [self.vector(reference) for reference in references])

    def vector(self, tokens: Tokens) -> CiderVector:
        """The caption's TF-IDF vector, for `score_vector`; make it once where captions come again."""
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
        """As `score`, of vectors that `vector` made."""
        return 10.0 * sum([_similarity(candidate, reference) for reference in references]) / len(references) / _ORDER


def _ngrams(tokens: Tokens) -> list[list[str]]:
    """The n-grams of each order, in the order of the text."""
    orders = [list(tokens)]
    for order in range(1, _ORDER):
        orders.append([f"{begin} {end}" for begin, end in zip(orders[-1], tokens[order:], strict=False)])
    return orders


def _similarity(candidate: CiderVector, reference: CiderVector) -> float:
    """Sum over the orders of the clipped cosine, under a Gaussian of the difference in length."""
    total = 0.0
    for order in range(_ORDER):
        ours, theirs = candidate.weights[order], reference.weights[order]
        # In the order of the caption, so that the sum is the same in every process.
        shared = [ngram for ngram in ours if ngram in theirs]
        if not shared:
            # Then no longer n-gram is shared either.
            break
        product = 0.0
        for ngram in shared:
            weight = theirs[ngram]
            product += min(ours[ngram], weight) * weight
        scale = candidate.norms[order] * reference.norms[order]
        total += product / scale if scale != 0 else product
    return total * math.exp(-((candidate.length - reference.length) ** 2) / (2 * SIGMA**2))
