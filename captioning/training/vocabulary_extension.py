"""Words of a dataset that a checkpoint's vocabulary lacks: added to it, or reported."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from captioning.data.word_tokenizer import WordTokenizer
from captioning.data.words import split_words

#: The number of words that a message lists.
_MAX_LISTED = 12


@dataclass(frozen=True)
class ExtendedVocabulary:
    """The tokenizer to train with, and messages about the words that were new to it."""

    tokenizer: WordTokenizer
    notes: tuple[str, ...]


def extend_vocabulary(
    known: WordTokenizer, captions: Sequence[str], *, min_count: int, extend: bool, name: str
) -> ExtendedVocabulary:
    """Add the words that occur `min_count` times in `captions` to the vocabulary `known` of the captioner `name`.

    Without `extend` none is added. A message reports the remaining unknown words and their share of all words.
    """
    unknown = known.unknown_words(captions)
    if not unknown:
        return ExtendedVocabulary(known, (f"Words: {name} knows all words of the captions.",))
    total = sum(len(split_words(caption)) for caption in captions)
    added = Counter({word: count for word, count in unknown.items() if extend and count >= min_count})
    remaining = unknown - added
    notes = []
    if added:
        notes.append(f"Words: {len(added):,} that {name} lacked were added to its vocabulary: {_listing(added)}.")
    if remaining:
        why = f"seen fewer than tokenizer.min_count={min_count} times" if extend else "tokenizer.extend=true adds them"
        notes.append(
            f"Words that remain unknown, {remaining.total() / total:.1%} of all words in the captions, and will not be "
            f"generated ({why}): {_listing(remaining)}."
        )
    return ExtendedVocabulary(known.with_words(_by_frequency(added)), tuple(notes))


def _by_frequency(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda word: (-counts[word], word))


def _listing(counts: Counter[str]) -> str:
    words = _by_frequency(counts)
    more = f", and {len(words) - _MAX_LISTED:,} more" if len(words) > _MAX_LISTED else ""
    return ", ".join(f"{word} ({counts[word]:,})" for word in words[:_MAX_LISTED]) + more
