"""Words of a dataset that a checkpoint's vocabulary lacks: added to it, or told of, never passed over in silence.

Knows words and how often they are there; nothing of models.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from captioning.data.word_tokenizer import WordTokenizer
from captioning.data.words import split_words

#: So many words are named in a line.
_NAMED = 12


@dataclass(frozen=True)
class Words:
    """The tokenizer to train with, and lines for people about words that are new to it."""

    tokenizer: WordTokenizer
    lines: tuple[str, ...]


def take_in(known: WordTokenizer, captions: Sequence[str], *, min_count: int, extend: bool, name: str) -> Words:
    """Add to the vocabulary `known`, of the captioner `name`, the words of `captions` seen `min_count` times.

    Without `extend` none is added. What remains unknown is told with its share of all words.
    """
    unknown = known.unknown_words(captions)
    if not unknown:
        return Words(known, (f"Words: {name} knows all those of the captions.",))
    total = sum(len(split_words(caption)) for caption in captions)
    new = Counter({word: count for word, count in unknown.items() if extend and count >= min_count})
    left = unknown - new
    lines = []
    if new:
        lines.append(f"Words: {len(new):,} that {name} lacks are added to its vocabulary: {_name(new)}.")
    if left:
        why = f"seen less than tokenizer.min_count={min_count} times" if extend else "tokenizer.extend=true adds them"
        lines.append(
            f"Words that stay unknown, {left.total() / total:.1%} of what the captions say, and will not be written "
            f"({why}): {_name(left)}."
        )
    return Words(known.with_words(_ranked(new)), tuple(lines))


def _ranked(counts: Counter[str]) -> list[str]:
    return sorted(counts, key=lambda word: (-counts[word], word))


def _name(counts: Counter[str]) -> str:
    words = _ranked(counts)
    more = f", and {len(words) - _NAMED:,} more" if len(words) > _NAMED else ""
    return ", ".join(f"{word} ({counts[word]:,})" for word in words[:_NAMED]) + more
