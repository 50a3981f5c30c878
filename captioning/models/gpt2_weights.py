"""GPT-2's weights ready for decoding: packed, in one number format, without dropout.

The arithmetic is that of `transformers`' GPT-2 in evaluation mode. Knows layers, not tokens or
prefixes. Shapes: N lines of T places, E width, H heads, D width of a head, S places looked at.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Activation, Linear

_FUSED: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu": "gelu",
    "relu": "relu",
}


class Gpt2Weights:
    """The blocks, and what comes before and after them. States between them are float32, or float64 in full."""

    def __init__(self, gpt2: Any, dtype: torch.dtype) -> None:
        transformer = gpt2.transformer
        self.dtype = dtype
        #: The type of states between blocks, and their width.
        self.wide = torch.promote_types(dtype, torch.float32)
        self.width: int = gpt2.config.n_embd
        self._words = transformer.wte.weight
        self._places = transformer.wpe.weight.to(self.wide)
        self._last = _norm(transformer.ln_f, self.wide)
        self.blocks = [Gpt2Block(block, gpt2.config, number, dtype) for number, block in enumerate(transformer.h)]

    def words(self, tokens: Tensor) -> Tensor:
        """Embeddings (…, E) of tokens (…)."""
        words: Tensor = functional.embedding(tokens, self._words)
        return words

    def embed(self, inputs: Tensor, places: Tensor | slice) -> Tensor:
        """What the first block reads: inputs (N, T, E) at `places` (T,), or all at one (1,)."""
        read: Tensor = inputs.to(self.wide) + self._places[places]
        return read

    def read(self, prefix: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state (N, E) after a prefix (N, T, E), and its keys and values (N, T, 2, H, D) in each block."""
        x = self.embed(prefix, slice(prefix.shape[1]))
        kept = []
        for block in self.blocks:
            query, pairs = block.ask(x)
            kept.append(pairs)
            # Of the last block only the last place is asked for.
            if block is self.blocks[-1]:
                x = block.answer(x[:, -1:], block.look(query[:, -1:], pairs))
            else:
                x = block.answer(x, block.look(query, pairs, causal=True))
        return self.end(x[:, -1]), kept

    def end(self, x: Tensor) -> Tensor:
        """States (…, E) for the vocabulary."""
        return self._last(x)


class Gpt2Block:
    """One block: attention and a feed-forward layer, each beside what passes by."""

    def __init__(self, block: Any, config: Any, number: int, dtype: torch.dtype) -> None:
        wide = torch.promote_types(dtype, torch.float32)
        self._heads = config.n_head
        scale = 1.0 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
        self._scale = scale / (number + 1) if config.scale_attn_by_inverse_layer_idx else scale
        self._dtype = dtype
        self._before_attention, self._before_mlp = _norm(block.ln_1, wide), _norm(block.ln_2, wide)
        self._ask = _linear(block.attn.c_attn, dtype)
        self._attend = _linear(block.attn.c_proj, dtype)
        fused = _FUSED.get(config.activation_function)
        self._up = _linear(block.mlp.c_fc, dtype, fused or "none")
        self._act: Callable[[Tensor], Tensor] | None = None if fused else block.mlp.act
        self._down = _linear(block.mlp.c_proj, dtype)

    def ask(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, T, H, D) of x (N, T, E), and pairs of keys and values (N, T, 2, H, D)."""
        count, length, width = x.shape
        asked = self._ask(self._before_attention(x).to(self._dtype).view(-1, width))
        parts = asked.view(count, length, 3, self._heads, width // self._heads)
        return parts[:, :, 0], parts[:, :, 1:]

    def look(self, query: Tensor, pairs: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """What queries (N, T, H, D) see in pairs (N, S, 2, H, D), under a mask (N, T, S) that is added."""
        query = query.transpose(1, 2)
        keys, values = pairs.transpose(1, 3).unbind(2)
        seen: Tensor = functional.scaled_dot_product_attention(
            query, keys, values, None if mask is None else mask[:, None], is_causal=causal, scale=self._scale
        )
        return seen.transpose(1, 2)

    def answer(self, x: Tensor, seen: Tensor) -> Tensor:
        """The block's output (N, T, E) for what it read, x, and saw (N, T, H, D)."""
        x = self._add(x, self._attend, seen)
        up = self._up(self._before_mlp(x).to(self._dtype).flatten(0, 1))
        return self._add(x, self._down, up if self._act is None else self._act(up))

    def _add(self, x: Tensor, layer: Linear, y: Tensor) -> Tensor:
        """x (N, T, E) and what `layer` makes of y, which has as many rows."""
        rows = y.reshape(x.shape[0] * x.shape[1], -1)
        if x.dtype == self._dtype:
            return layer(rows, plus=x.reshape(len(rows), -1)).view(x.shape)
        return x + layer(rows).view(x.shape)


def _norm(layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias, epsilon = layer.weight.to(dtype), layer.bias.to(dtype), layer.eps
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def _linear(layer: Any, dtype: torch.dtype, activation: Activation = "none") -> Linear:
    # GPT-2's layers keep their weights the other way round.
    return Linear(effective_weight(layer).T.to(dtype), effective_bias(layer).to(dtype), activation)


def effective_weight(layer: Any) -> Tensor:
    """The weight (in, out) that a layer computes with, adapters included."""
    base = getattr(layer, "base_layer", None)
    if base is None:
        weight: Tensor = layer.weight
        return weight
    weight = base.weight
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return weight


def effective_bias(layer: Any) -> Tensor:
    """The bias (out,) that a layer computes with."""
    bias: Tensor = getattr(layer, "base_layer", layer).bias
    return bias
