"""Scores a set of captions with all metrics."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from captioning.errors import InputError
from captioning.metrics.bleu import corpus_bleu
from captioning.metrics.cider import CiderD
from captioning.metrics.flaws import breaks_off, repeats_itself
from captioning.metrics.meteor import meteor as corpus_meteor
from captioning.metrics.retrieval import own_ranks, recall_at
from captioning.metrics.rouge import rouge_l
from captioning.metrics.tokenize import ptb_tokenize


@dataclass(frozen=True)
class Scores:
    """Metrics of a set of captions, in percent as in papers, and counts."""

    bleu: tuple[float, ...]
    """BLEU-1, -2, -3, -4."""
    rouge_l: float
    cider_d: float
    meteor: float | None
    """None if not computed."""
    num_images: int
    distinct: float
    """Number of distinct captions, in percent of all."""
    words: int
    """Number of distinct words in all captions together."""
    mean_length: float
    """Mean number of words per caption, without punctuation."""
    repetitions: int
    """Number of captions that repeat themselves (`flaws.repeats_itself`)."""
    truncated: int
    """Number of captions that were cut at the maximum length or break off (`flaws.breaks_off`)."""
    unknown: int
    """Number of captions that contain an unknown word (UNK)."""
    cider_d_of: Mapping[str, float]
    """CIDEr-D of each image's caption."""
    rank_of: Mapping[str, int]
    """Self-retrieval: each image's rank among all images by the CIDEr-D of its caption with their references."""

    def recall_at(self, k: int) -> float:
        """R@k of self-retrieval, in percent; comparable only between sets of the same size."""
        return recall_at(list(self.rank_of.values()), k)

    def summary(self) -> dict[str, float]:
        """The corpus-level numbers by name; METEOR if it was computed."""
        numbers = {f"bleu_{order}": score for order, score in enumerate(self.bleu, start=1)}
        numbers |= {"rouge_l": self.rouge_l, "cider_d": self.cider_d}
        if self.meteor is not None:
            numbers["meteor"] = self.meteor
        return numbers | {
            "recall_at_1": self.recall_at(1),
            "recall_at_10": self.recall_at(10),
            "distinct": self.distinct,
            "words": float(self.words),
            "mean_length": self.mean_length,
            "repetitions": float(self.repetitions),
            "truncated": float(self.truncated),
            "unknown": float(self.unknown),
            "num_images": float(self.num_images),
        }


def score_captions(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool = False,
    unended: Collection[str] = (),
    unknown: Collection[str] = (),
) -> Scores:
    """Score one caption per image against the image's references.

    CIDEr-D takes its document frequencies from these references. Both mappings must have the same images, at least
    one, each with a reference; raises `InputError` otherwise. `unended` are the images whose captions were cut before
    EOS, `unknown` those whose captions contain an unknown word, as neither can be seen from the text.
    """
    _check(candidates, references)
    images = list(candidates)
    texts = [ptb_tokenize(candidates[image]) for image in images]
    originals = [[ptb_tokenize(reference) for reference in references[image]] for image in images]
    scorer = CiderD(originals)
    vectors = [scorer.vector(text) for text in texts]
    targets = [[scorer.vector(reference) for reference in each] for each in originals]
    ciders = [100 * scorer.score_vector(vector, each) for vector, each in zip(vectors, targets, strict=True)]
    return Scores(
        bleu=tuple(100 * score for score in corpus_bleu(texts, originals)),
        rouge_l=100 * sum(map(rouge_l, texts, originals)) / len(images),
        cider_d=sum(ciders) / len(images),
        meteor=100 * corpus_meteor(texts, originals) if meteor else None,
        num_images=len(images),
        distinct=100 * len({tuple(text) for text in texts}) / len(images),
        words=len({word for text in texts for word in text}),
        mean_length=sum(map(len, texts)) / len(images),
        repetitions=sum(map(repeats_itself, texts)),
        truncated=sum(image in unended or breaks_off(text) for image, text in zip(images, texts, strict=True)),
        unknown=sum(image in unknown for image in images),
        cider_d_of=dict(zip(images, ciders, strict=True)),
        rank_of=dict(zip(images, own_ranks(vectors, targets), strict=True)),
    )


def _check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise InputError("There are no captions to score: the split is empty.")
    unmatched = sorted(candidates.keys() ^ references.keys())
    if unmatched:
        raise InputError(
            f"{len(unmatched)} images have a caption or references but not both, such as {unmatched[0]!r}: "
            "score exactly the images that have references."
        )
    bare = sorted(image for image, texts in references.items() if not texts)
    if bare:
        raise InputError(f"{len(bare)} images have no reference captions, such as {bare[0]!r}: leave them out.")
