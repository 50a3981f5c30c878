"""The reward of a sampled caption, given the reference captions of the image. Works on text, not on tokens."""

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

#: Marks the end of a caption among its words; the tokeniser never produces it.
END = "</s>"

#: How the frequencies are counted. Change it when that changes, so that old files are not used.
_COUNTED_AS = "train, ptb tokens and ends"


class Reward(Protocol):
    """Computes the rewards of captions."""

    def __call__(
        self, keys: Sequence[str], candidates: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """The reward of each of the K `candidates` of each of B images: (B, K) float32.

        `keys` name the images. A candidate is None if it was truncated; its reward is 0.
        """
        ...


class CiderReward:
    """CIDEr-D in 0..10, plus `bleu_weight` × sentence BLEU-4, less `between_weight` × the similarity to another image.

    That similarity is the highest CIDEr-D of the caption with the references of another image in the same
    call: captions that fit many photos earn less ("CIDErBtw", Wang et al. 2020, "Compare and Reweight"; there
    it is the mean over images that a retrieval model finds similar). With CIDEr-D alone captions become vague.

    The end of a caption counts as a word, in the references too. Otherwise captions that break off ("a man in
    a blue shirt and a") score up to 4 points more than complete ones, and training exploits that (Hu et al.
    2023, "A request for clarity over the end of sequence token"). So the reward differs slightly from the
    CIDEr-D of the same captions. A caption that repeats a word or a pair of words immediately gets 0.

    `scorer` has the document frequencies of the train split (`train_split_cider`). The reference vectors of
    the first `max_cached_images` images are cached, at about 20 kB each.
    """

    def __init__(
        self, scorer: CiderD, *, bleu_weight: float = 0.0, between_weight: float = 0.0, max_cached_images: int = 10_000
    ) -> None:
        self._scorer = scorer
        self._bleu_weight = bleu_weight
        self._between_weight = between_weight
        self._max_cached_images = max_cached_images
        self._cache: dict[str, _References] = {}

    def __call__(
        self, keys: Sequence[str], candidates: Sequence[Sequence[str | None]], references: Sequence[Sequence[str]]
    ) -> Tensor:
        """See `Reward`."""
        images = [self._references(key, texts) for key, texts in zip(keys, references, strict=True)]
        return torch.tensor(
            [
                [self._reward(text, image, images) for text in texts]
                for texts, image in zip(candidates, images, strict=True)
            ]
        )

    def _references(self, key: str, texts: Sequence[str]) -> "_References":
        cached = self._cache.get(key)
        if cached is None:
            cached = _References(self._scorer, texts, bleu=self._bleu_weight > 0)
            if len(self._cache) < self._max_cached_images:
                self._cache[key] = cached
        return cached

    def _reward(self, text: str | None, image: "_References", images: Sequence["_References"]) -> float:
        if text is None:
            return 0.0
        words = _words(text)
        if has_immediate_repeat(words):
            return 0.0
        vector = self._scorer.vector(words)
        reward = self._scorer.score_vector(vector, image.vectors)
        if self._between_weight:
            others = (self._scorer.score_vector(vector, other.vectors) for other in images if other is not image)
            # Never below 0, or a truncated caption would earn more.
            reward = max(reward - self._between_weight * max(others, default=0.0), 0.0)
        if image.bleu is not None:
            reward += self._bleu_weight * image.bleu.score(words)
        return reward


class _References:
    """The reference captions of one image, prepared for scoring."""

    def __init__(self, scorer: CiderD, texts: Sequence[str], *, bleu: bool) -> None:
        words = [_words(text) for text in texts]
        self.vectors: list[CiderVector] = [scorer.vector(each) for each in words]
        self.bleu = SentenceBleu(words) if bleu else None


def has_immediate_repeat(words: Sequence[str]) -> bool:
    """Whether a word, or a pair of words, occurs twice in a row."""
    pairs = list(pairwise(words))
    return any(one == other for one, other in pairs) or any(map(eq, pairs, pairs[2:]))


def train_split_cider(shards: ShardSet, cache_file: Location | None = None) -> CiderD:
    """The CIDEr-D scorer with the train split's document frequencies, the ends of captions counted as words.

    The frequencies are kept in `cache_file`, which is rewritten if it is of other shards. Raises
    `InputError` for shards that cannot be read.
    """
    source = f"{shards.identity} {_COUNTED_AS}"
    if cache_file is not None and cache_file.exists():
        try:
            cached = CiderD.from_bytes(cache_file.read_bytes())
        except ValueError:
            cached = None
        if cached is not None and cached.source == source:
            return cached
    scorer = CiderD(_train_references(shards), source=source)
    if cache_file is not None:
        cache_file.write_bytes(scorer.to_bytes())
    return scorer


def _train_references(shards: ShardSet) -> Iterator[list[list[str]]]:
    for shard in shards.split("train"):
        for sample in iterate_shard(shards.location, shard.name):
            yield [_words(text) for text in sample.captions]


def _words(text: str) -> list[str]:
    return [*ptb_tokenize(text), END]
