"""What a CNN-LSTM is told: its encoder, and the sizes of what writes the caption. Imports no PyTorch."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from captioning.config import settings
from captioning.models.encoder_settings import EncoderSettings

_Share = Annotated[float, Interval(ge=0, lt=1)]


@settings
class CnnLstmSettings:
    """The sizes of a CNN-LSTM."""

    kind: Literal["cnn_lstm"] = "cnn_lstm"
    """A CNN that sees, an LSTM that writes."""

    encoder: EncoderSettings = EncoderSettings()
    attention: bool = True
    """Soft attention over the grid; without it the pooled feature alone."""

    heads: Annotated[int, Gt(0)] = 8
    """Attention heads."""

    embedding_size: Annotated[int, Gt(0)] = 512
    """Width of the words that the LSTM reads."""

    hidden_size: Annotated[int, Gt(0)] = 512
    """Width of the state of the LSTM."""

    dropout: _Share = 0.3
    """Dropout of words, of grid features and before the vocabulary."""

    feature_dropout: _Share = 0.1
    """Dropout of the grid that the encoder gives."""

    attention_penalty: Annotated[float, Ge(0)] = 0.0
    """Weight of Xu et al.'s doubly-stochastic term: every cell should be looked at once a caption."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
