"""The decoding that a captioner brings into fine-tuning: its own, less the rules that the new captions break.

A rule against stutter, or a longest caption, that was right for other captions may forbid these.
Knows decodings and token ids; nothing of models or files.
"""

import dataclasses
from collections.abc import Collection, Sequence

from captioning.decoding.settings import DecodingSettings

#: A rule is kept that no more than this share of the captions break. (Of people's captions of Flickr30k 4% hold the
#: same two words twice, and captioners of such photos are better off without.)
_BREAK = 0.05
#: The longest run of tokens that is kept from coming twice.
_LONGEST_RUN = 4


def fit_decoding(
    decoding: DecodingSettings, captions: Sequence[Sequence[int]], *, longest: int, keep: Collection[str] = ()
) -> tuple[DecodingSettings, list[str]]:
    """A decoding that can write captions like these (token ids without the end), and lines on what was changed.

    `max_new_tokens` is raised to `longest` at most; the settings named in `keep` stay.
    """
    lines = []
    size, most = decoding.no_repeat_ngram_size, decoding.max_new_tokens
    allowed = _BREAK * len(captions)
    if "no_repeat_ngram_size" not in keep:
        while size and sum(_repeats(caption, size) for caption in captions) > allowed:
            size = size + 1 if size < _LONGEST_RUN else 0
    if size != decoding.no_repeat_ngram_size:
        lines.append(
            f"Decoding: no_repeat_ngram_size is {size} now, not {decoding.no_repeat_ngram_size}: too many of the "
            "captions say a thing twice."
        )
    lengths = sorted(len(caption) + 1 for caption in captions)
    if "max_new_tokens" not in keep and sum(length > most for length in lengths) > allowed:
        # Enough for all but the longest hundredth.
        most = max(min(lengths[(len(lengths) - 1) * 99 // 100], longest), most)
        lines.append(f"Decoding: max_new_tokens is {most} now, not {decoding.max_new_tokens}: the captions are longer.")
    return dataclasses.replace(decoding, no_repeat_ngram_size=size, max_new_tokens=most), lines


def _repeats(caption: Sequence[int], size: int) -> bool:
    runs = [tuple(caption[at : at + size]) for at in range(len(caption) - size + 1)]
    return len(set(runs)) < len(runs)
