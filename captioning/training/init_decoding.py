"""The decoding that a captioner brings into fine-tuning: its own, less the rules that the new captions break.

A rule against stutter, or a longest caption, that was right for other captions may forbid these.
Knows decodings and token ids; nothing of models or files.
"""

import dataclasses
from collections.abc import Collection, Sequence

from captioning.decoding.settings import DecodingSettings

#: The share of captions that may break a rule against runs of so many tokens coming twice; a single one always may.
#: (Of people's captions of Flickr30k 4.1%, 0.7% and 0.3% hold the same two, three and four words twice, and captioners
#: of such photos are better off without.) A rule that too many break gives way to the next, behind the last is none.
_BREAK = {1: 0.05, 2: 0.05, 3: 0.015, 4: 0.01}
#: The share of captions that may be longer than `max_new_tokens`.
_LONGER = 0.05


def fit_decoding(
    decoding: DecodingSettings, captions: Sequence[Sequence[int]], *, longest: int, keep: Collection[str] = ()
) -> tuple[DecodingSettings, list[str]]:
    """A decoding that can write captions like these (token ids without the end), and lines on what was changed.

    `max_new_tokens` is raised to `longest` at most; the settings named in `keep` stay.
    """
    lines = []
    size, most = decoding.no_repeat_ngram_size, decoding.max_new_tokens
    if "no_repeat_ngram_size" not in keep:
        while size and sum(_repeats(caption, size) for caption in captions) > max(1, _share(size) * len(captions)):
            size = size + 1 if size < max(_BREAK) else 0
    if size != decoding.no_repeat_ngram_size:
        lines.append(
            f"Decoding: no_repeat_ngram_size is {size} now, not {decoding.no_repeat_ngram_size}: too many of the "
            "captions say a thing twice."
        )
    lengths = sorted(len(caption) + 1 for caption in captions)
    if "max_new_tokens" not in keep and sum(length > most for length in lengths) > _LONGER * len(captions):
        # Enough for all but the longest hundredth.
        most = max(min(lengths[(len(lengths) - 1) * 99 // 100], longest), most)
        lines.append(f"Decoding: max_new_tokens is {most} now, not {decoding.max_new_tokens}: the captions are longer.")
    return dataclasses.replace(decoding, no_repeat_ngram_size=size, max_new_tokens=most), lines


def cut_lines(captions: Sequence[Sequence[int]], longest: int) -> list[str]:
    """What to say of captions that training cuts; nothing where all of them fit with their end."""
    lengths = [len(caption) + 1 for caption in captions]
    cut = sum(length > longest for length in lengths)
    if not cut:
        return []
    return [
        f"{cut / len(lengths):.1%} of the captions are longer than {longest} tokens (max_tokens, or the room that the "
        f"decoder has) and are cut there: no end of them is learned. The longest has {max(lengths):,} tokens."
    ]


def _share(size: int) -> float:
    return _BREAK[min(size, max(_BREAK))]


def _repeats(caption: Sequence[int], size: int) -> bool:
    runs = [tuple(caption[at : at + size]) for at in range(len(caption) - size + 1)]
    return len(set(runs)) < len(runs)
