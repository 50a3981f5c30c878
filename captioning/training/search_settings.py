"""Settings of the search for a captioner's decoding. Imports nothing heavy."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Len

from captioning.config import settings


@settings
class SearchSettings:
    """The decodings to try, besides the captioner's own."""

    beam_sizes: Annotated[tuple[Annotated[int, Ge(1), Le(100)], ...], Len(1)] = (1, 3, 5)
    """Beam sizes; 1 is greedy search."""

    length_penalties: Annotated[tuple[float, ...], Len(1)] = (0.5, 0.7, 1.0, 1.3)
    """Tried with every beam size above 1; greedy search has no use for one."""

    repetition_penalties: Annotated[tuple[Annotated[float, Gt(0)], ...], Len(1)] = (1.0, 1.1, 1.2)
    """Penalties for words that the caption already contains; 1 is none."""

    no_repeat_ngram_sizes: Annotated[tuple[Annotated[int, Ge(0)], ...], Len(1)] = (0, 2, 3)
    """Each is tried with each of `repetition_penalties`."""

    images: Annotated[int, Ge(1)] | None = None
    """Use only this many images, the first of the split; null: all."""

    by: Literal["cider_d"] = "cider_d"
    """The metric that decides."""

    margin: Annotated[float, Ge(0)] = 0.3
    """Among decodings that score at most this much below the best, one with fewer beams or flaws is preferred, or else
    the current one."""
