"""Back ends and precisions by name, as settings say them. Imports no PyTorch."""

from typing import Literal

#: A back end, or `auto`: the fastest of those that are ready at once (`compile` is not).
EncoderBackend = Literal["auto", "eager", "onednn", "compile"]

#: What is computed with: `bf16` by autocast; `int8` in the image encoder's convolutions, all else in float32.
Precision = Literal["fp32", "bf16", "int8"]
