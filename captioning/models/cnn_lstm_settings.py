"""Settings of a CNN-LSTM: its encoder, and the sizes of its decoder. Imports no PyTorch."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from captioning.config import settings
from captioning.models.encoder_settings import EncoderSettings

_Fraction = Annotated[float, Interval(ge=0, lt=1)]


@settings
class CnnLstmSettings:
    """The sizes of a CNN-LSTM."""

    kind: Literal["cnn_lstm"] = "cnn_lstm"
    """A CNN encodes the image, an LSTM writes the caption."""

    encoder: EncoderSettings = EncoderSettings()
    attention: bool = True
    """Soft attention over the grid; without it only the pooled feature is used."""

    heads: Annotated[int, Gt(0)] = 8
    """Attention heads."""

    embedding_size: Annotated[int, Gt(0)] = 512
    """Width of the token embeddings."""

    hidden_size: Annotated[int, Gt(0)] = 512
    """Width of the LSTM's state."""

    dropout: _Fraction = 0.3
    """Dropout of token embeddings, of the LSTM's states and before the output layer."""

    feature_dropout: _Fraction = 0.1
    """Dropout of the encoder's grid."""

    attention_penalty: Annotated[float, Ge(0)] = 0.0
    """Weight of Xu et al.'s doubly stochastic term, which makes a caption attend to every cell equally."""

    def __post_init__(self) -> None:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
