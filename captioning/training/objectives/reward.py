"""What a caption that the model wrote itself is worth, against the people's captions of the image.

Knows text and metrics; no tokens, no models.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from operator import eq
from typing import Protocol

import torch
from torch import Tensor

from captioning.data.shards import ShardSet, iterate_shard
from captioning.metrics.cider import CiderD, CiderVector
from captioning.metrics.sentence_bleu import SentenceBleu
from captioning.metrics.tokenize import ptb_tokenize
from captioning.storage import Location

#: Stands for the end of a caption among its words; no word has such a form.
END = "</s>"

#: What the frequencies are of; another text whenever they would be others.
_COUNTED_AS = "train, ptb tokens and ends"


class Reward(Protocol):
    """Says what captions are worth."""

    def __call__(
        self, keys: Sequence[str], candidates: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """What each of the K captions of each of B images is worth: (B, K) float32.

        `keys` name the images, `references` are the people's captions. A caption that is None was
        cut off and is worth nothing.
        """
        ...


class CiderReward:
    """CIDEr-D in 0..10, with a share of sentence BLEU-4 if asked for, less what fits another image as well.

    With a `between_weight`, that many times the CIDEr-D with the captions of that other image of the
    call which it fits best are taken off: what can be said of many photos pays less ("CIDErBtw", Wang
    et al. 2020, "Compare and Reweight"; there the mean over images that a retrieval model finds
    alike). By CIDEr-D alone training becomes vague.

    The end of a caption counts as a word, of the references too. Without it captions that stop in
    the midst ("a man in a blue shirt and a") score up to 4 points more than whole ones, and
    training finds them (Hu et al. 2023, "A request for clarity over the end of sequence token").
    So a reward is a little other than the CIDEr-D of the same captions. A caption that says a word,
    or two words, twice running is worth nothing.

    `scorer` has the document frequencies of the train split (`train_frequencies`). The vectors of
    the first `kept_images` images met are kept: some 20 kB each.
    """

    def __init__(
        self, scorer: CiderD, *, bleu_weight: float = 0.0, between_weight: float = 0.0, kept_images: int = 10_000
    ) -> None:
        self._scorer = scorer
        self._bleu_weight = bleu_weight
        self._between_weight = between_weight
        self._kept_images = kept_images
        self._kept: dict[str, _References] = {}

    def __call__(
        self, keys: Sequence[str], candidates: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """As `Reward` says."""
        images = [self._references(key, texts) for key, texts in zip(keys, references, strict=True)]
        return torch.tensor(
            [
                [self._worth(text, image, images) for text in texts]
                for texts, image in zip(candidates, images, strict=True)
            ]
        )

    def _references(self, key: str, texts: Sequence[str]) -> "_References":
        kept = self._kept.get(key)
        if kept is None:
            kept = _References(self._scorer, texts, bleu=self._bleu_weight > 0)
            if len(self._kept) < self._kept_images:
                self._kept[key] = kept
        return kept

    def _worth(self, text: str | None, image: "_References", images: Sequence["_References"]) -> float:
        if text is None:
            return 0.0
        words = _words(text)
        if stutters(words):
            return 0.0
        vector = self._scorer.vector(words)
        worth = self._scorer.score_vector(vector, image.vectors)
        if self._between_weight:
            others = (self._scorer.score_vector(vector, other.vectors) for other in images if other is not image)
            # No less than nothing: nor may it pay to be cut off.
            worth = max(worth - self._between_weight * max(others, default=0.0), 0.0)
        if image.bleu is not None:
            worth += self._bleu_weight * image.bleu.score(words)
        return worth


class _References:
    """The people's captions of one image, made ready."""

    def __init__(self, scorer: CiderD, texts: Sequence[str], *, bleu: bool) -> None:
        words = [_words(text) for text in texts]
        self.vectors: list[CiderVector] = [scorer.vector(each) for each in words]
        self.bleu = SentenceBleu(words) if bleu else None


def stutters(words: Sequence[str]) -> bool:
    """Whether a word, or a pair of words, comes twice running."""
    pairs = list(pairwise(words))
    return any(one == other for one, other in pairs) or any(map(eq, pairs, pairs[2:]))


def train_frequencies(shards: ShardSet, place: Location | None = None) -> CiderD:
    """The CIDEr-D scorer with the train split's document frequencies, the ends of captions counted as words.

    They are counted once and kept in the file `place`, which is read back as long as it is of the
    same shards, and written anew otherwise. Raises `InputError` for shards that cannot be read.
    """
    source = f"{shards.identity} {_COUNTED_AS}"
    if place is not None and place.exists():
        try:
            kept = CiderD.from_bytes(place.read_bytes())
        except ValueError:
            kept = None
        if kept is not None and kept.source == source:
            return kept
    scorer = CiderD(_train_references(shards), source=source)
    if place is not None:
        place.write_bytes(scorer.to_bytes())
    return scorer


def _train_references(shards: ShardSet) -> Iterator[list[list[str]]]:
    for shard in shards.split("train"):
        for sample in iterate_shard(shards.location, shard.name):
            yield [_words(text) for text in sample.captions]


def _words(text: str) -> list[str]:
    return [*ptb_tokenize(text), END]
