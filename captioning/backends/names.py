"""The back ends by name, as settings say them. Imports no PyTorch."""

from typing import Literal

#: A back end, or `auto`: the fastest of those that are ready at once (`compile` is not).
EncoderBackend = Literal["auto", "eager", "onednn", "compile"]
