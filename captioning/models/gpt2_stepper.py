"""GPT-2 driven one token at a time, from a prefix on: a `Stepper` for the decoding engine.

Knows embeddings and tokens, not what the prefix was made of. Shapes: B images, R hypotheses,
P prefix, E width, V vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Gpt2Stepper:
    """A hypothesis's state is its keys and values.

    The prefix is read once an image; hypotheses take their copies when beams part. `check_length`
    hears how many positions are to be in use, and raises when they are too many.
    """

    def __init__(self, gpt2: Any, prefix: Tensor, *, vocab_size: int, check_length: Callable[[int], None]) -> None:
        """`prefix` is (B, P, E); logits are those of the first `vocab_size` tokens."""
        block = gpt2.transformer.h[0]
        assert not (block.training and block.gradient_checkpointing), "checkpointed blocks keep no keys and values"
        self.vocab_size = vocab_size
        self._gpt2 = gpt2
        self._prefix = prefix
        self._check_length = check_length
        self._cache: Any = None
        self._length = 0

    def start(self) -> Tensor:
        """Logits (B, V) of the first token."""
        from transformers import DynamicCache

        self._cache = DynamicCache()
        self._length = 0
        return self._read(self._prefix)

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` (R,) to the hypotheses `rows` (R,); logits (R, V)."""
        assert self._cache is not None, "start() comes first"
        self._cache.reorder_cache(torch.as_tensor(rows, device=self._prefix.device))
        tokens = torch.as_tensor(tokens, device=self._prefix.device)
        return self._read(self._gpt2.transformer.wte(tokens)[:, None])

    def _read(self, inputs: Tensor) -> Tensor:
        self._length += inputs.shape[1]
        self._check_length(self._length)
        out = self._gpt2.transformer(inputs_embeds=inputs, past_key_values=self._cache, use_cache=True)
        logits: Tensor = self._gpt2.lm_head(out.last_hidden_state[:, -1])[:, : self.vocab_size]
        return logits.float()
