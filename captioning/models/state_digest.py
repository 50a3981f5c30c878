"""A hash that identifies weights."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def state_digest(about: str, state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of `about` and the tensors of `state` with their names.

    Batch norms' counts of batches are left out: no output depends on them.
    """
    digest = hashlib.sha256(about.encode())
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            data = value.detach().cpu().contiguous()
            digest.update(f"\n{name} {tuple(data.shape)} {data.dtype}\n".encode())
            digest.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
