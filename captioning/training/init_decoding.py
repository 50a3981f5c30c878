"""Adapts the decoding of a checkpoint to the captions that it is fine-tuned on.

A rule against repetition, or a maximum length, that suits other captions may make these impossible to write.
"""

import dataclasses
from collections.abc import Collection, Sequence

from captioning.decoding.settings import DecodingSettings

#: By n-gram size: the share of captions that may repeat an n-gram (one caption always may) before the rule against it
#: is replaced by that for the next size, or dropped after the last. Of the reference captions of Flickr30k 4.1%, 0.7%
#: and 0.3% contain the same two, three and four words twice, and captioners of such photos do better with the rule.
_MAX_REPEATING = {1: 0.05, 2: 0.05, 3: 0.015, 4: 0.01}
#: The share of captions that may be longer than `max_new_tokens` before that is raised.
_MAX_LONGER = 0.05


def fit_decoding(
    decoding: DecodingSettings, captions: Sequence[Sequence[int]], *, longest: int, keep: Collection[str] = ()
) -> tuple[DecodingSettings, list[str]]:
    """A decoding that can write captions like these (token ids without EOS), and a message on each change.

    `max_new_tokens` is raised to `longest` at most; settings named in `keep` stay.
    """
    notes = []
    size, max_new_tokens = decoding.no_repeat_ngram_size, decoding.max_new_tokens
    if "no_repeat_ngram_size" not in keep:
        while size and sum(_repeats(caption, size) for caption in captions) > _allowed(size, len(captions)):
            size = size + 1 if size < max(_MAX_REPEATING) else 0
    if size != decoding.no_repeat_ngram_size:
        notes.append(
            f"Decoding: no_repeat_ngram_size is now {size}, not {decoding.no_repeat_ngram_size}: too many of the "
            "captions repeat words."
        )
    lengths = sorted(len(caption) + 1 for caption in captions)
    longer = sum(length > max_new_tokens for length in lengths)
    if "max_new_tokens" not in keep and longer > _MAX_LONGER * len(captions):
        # The 99th percentile.
        max_new_tokens = max(min(lengths[(len(lengths) - 1) * 99 // 100], longest), max_new_tokens)
        notes.append(
            f"Decoding: max_new_tokens is now {max_new_tokens}, not {decoding.max_new_tokens}: the captions are longer."
        )
    return dataclasses.replace(decoding, no_repeat_ngram_size=size, max_new_tokens=max_new_tokens), notes


def truncation_notes(captions: Sequence[Sequence[int]], longest: int) -> list[str]:
    """A message if captions with EOS are longer than `longest` tokens, else none."""
    lengths = [len(caption) + 1 for caption in captions]
    cut = sum(length > longest for length in lengths)
    if not cut:
        return []
    return [
        f"{cut / len(lengths):.1%} of the captions are longer than {longest} tokens (max_tokens, or the room that the "
        f"decoder has) and are cut there: their ends are not learned. The longest has {max(lengths):,} tokens."
    ]


def _allowed(size: int, captions: int) -> float:
    """How many of that number of captions may repeat an n-gram of this size."""
    return max(1, _MAX_REPEATING[min(size, max(_MAX_REPEATING))] * captions)


def _repeats(caption: Sequence[int], size: int) -> bool:
    ngrams = [tuple(caption[at : at + size]) for at in range(len(caption) - size + 1)]
    return len(set(ngrams)) < len(ngrams)
