"""Names of back ends and precisions in settings. Imports no PyTorch."""

from typing import Literal

#: A back end, or `auto`: the fastest of those that are ready at once (`compile` is not).
EncoderBackend = Literal["auto", "eager", "onednn", "compile"]

#: The precision of the computation: `bf16` by autocast; `int8` in the image encoder's convolutions, else float32.
Precision = Literal["fp32", "bf16", "int8"]
