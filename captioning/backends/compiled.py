"""The back end torch.compile: generates kernels and builds them with a C compiler, which takes a minute."""

import torch
from torch import Tensor

from captioning.backends.network import Network


def prepare(network: Network, pixels: Tensor, dtype: torch.dtype) -> Network:
    """`network` compiled for exactly as many images as `pixels` (B, S, S, 3) uint8 has.

    Raises whatever the compiler raises, here and not later during a run.
    """
    import torch._inductor.config as inductor

    with inductor.patch(freezing=True):
        run = torch.compile(network, dynamic=False)

        def compiled(piece: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                return run(piece)

        with torch.no_grad():
            compiled(pixels)
    return compiled
