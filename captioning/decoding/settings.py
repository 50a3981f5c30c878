"""Settings of the decoding engine."""

from typing import Annotated

from annotated_types import Ge, Gt, Le

from captioning.config import settings


@settings
class DecodingSettings:
    """How captions are searched for, under the names of `transformers`' generation settings."""

    beam_size: Annotated[int, Ge(1), Le(100)] = 3
    """Hypotheses kept for an image; 1 is greedy search."""

    max_new_tokens: Annotated[int, Ge(1)] = 20
    """The most tokens of a caption; the end token counts, the prompt does not."""

    min_new_tokens: Annotated[int, Ge(0)] = 0
    """The fewest tokens before the end token is allowed."""

    length_penalty: Annotated[float, Ge(-2), Le(10)] = 1.0
    """Beam search ranks by the sum of log-probabilities over the length to this power."""

    repetition_penalty: Annotated[float, Gt(0)] = 1.0
    """Above 1 makes tokens that the caption already has less likely (the prompt does not count)."""

    no_repeat_ngram_size: Annotated[int, Ge(0)] = 0
    """No n-gram of this many tokens occurs twice in a caption; 0 allows all."""

    num_captions: Annotated[int, Ge(1)] = 1
    """Hypotheses returned for an image, best first; at most `beam_size`."""

    prompt: str | None = None
    """Text that every caption continues."""

    def __post_init__(self) -> None:
        if self.num_captions > self.beam_size:
            raise ValueError(
                f"num_captions is {self.num_captions} and beam_size {self.beam_size}: "
                "a search returns at most as many captions as it has beams; raise beam_size"
            )
        if self.min_new_tokens > self.max_new_tokens:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens} and max_new_tokens {self.max_new_tokens}: "
                "the fewest tokens cannot exceed the most; raise max_new_tokens"
            )
