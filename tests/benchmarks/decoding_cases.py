"""The cases of the decoding benchmark: models by their sizes, beams, precisions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A GPT-2 of random weights with `sizes` (layers, width, heads), or the bundled CNN-LSTM; beams; a precision."""

    sizes: tuple[int, int, int] | None
    beams: int
    precision: str = "fp32"
    single: bool = False


CASES = {
    "gpt2-small": Case((12, 768, 12), 5, single=True),
    "gpt2-small bf16": Case((12, 768, 12), 5, "bf16"),
    "4x256": Case((4, 256, 4), 5, single=True),
    "4x256 greedy": Case((4, 256, 4), 1),
    "4x256 bf16": Case((4, 256, 4), 5, "bf16"),
    "lstm": Case(None, 5),
}
