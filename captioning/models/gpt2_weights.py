"""GPT-2's weights prepared for decoding: packed, in one number format, without dropout.

The arithmetic is that of `transformers`' GPT-2 in evaluation mode. Shapes: N rows of T positions, E width,
H heads, D width of a head, S keys attended to.
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
    """GPT-2's layers. The residual stream between blocks is float32, or float64 for float64 weights."""

    def __init__(self, gpt2: Any, dtype: torch.dtype) -> None:
        transformer = gpt2.transformer
        self.dtype = dtype
        self.residual_dtype = torch.promote_types(dtype, torch.float32)
        self.width: int = gpt2.config.n_embd
        self._token_embeddings = transformer.wte.weight
        self._position_embeddings = transformer.wpe.weight.to(self.residual_dtype)
        self.blocks = [Gpt2Block(block, gpt2.config, number, dtype) for number, block in enumerate(transformer.h)]
        #: The residual stream (…, E) to states for the output layer.
        self.final_norm = _norm(transformer.ln_f, self.residual_dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Token embeddings (…, E) of tokens (…)."""
        embeddings: Tensor = functional.embedding(tokens, self._token_embeddings)
        return embeddings

    def add_positions(self, embeddings: Tensor, positions: Tensor | slice) -> Tensor:
        """The first block's input: embeddings (N, T, E) at `positions` (T,), or all at one (1,)."""
        x: Tensor = embeddings.to(self.residual_dtype) + self._position_embeddings[positions]
        return x

    def prefill(self, prefix: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The state (N, E) after a prefix (N, T, E), and each block's keys and values (N, T, 2, H, D)."""
        x = self.add_positions(prefix, slice(prefix.shape[1]))
        caches = []
        for block in self.blocks:
            query, keys_values = block.project(x)
            caches.append(keys_values)
            # Only the last position of the last block is needed.
            if block is self.blocks[-1]:
                x = block.output(x[:, -1:], block.attend(query[:, -1:], keys_values))
            else:
                x = block.output(x, block.attend(query, keys_values, causal=True))
        return self.final_norm(x[:, -1]), caches


class Gpt2Block:
    """One transformer block: attention and an MLP, each after a layer norm and around a residual connection."""

    def __init__(self, block: Any, config: Any, number: int, dtype: torch.dtype) -> None:
        residual_dtype = torch.promote_types(dtype, torch.float32)
        self._heads = config.n_head
        scale = 1.0 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
        self._scale = scale / (number + 1) if config.scale_attn_by_inverse_layer_idx else scale
        self._dtype = dtype
        self._attention_norm, self._mlp_norm = _norm(block.ln_1, residual_dtype), _norm(block.ln_2, residual_dtype)
        self._qkv = _linear(block.attn.c_attn, dtype)
        self._attention_out = _linear(block.attn.c_proj, dtype)
        fused = _FUSED.get(config.activation_function)
        self._mlp_in = _linear(block.mlp.c_fc, dtype, fused or "none")
        self._activation: Callable[[Tensor], Tensor] | None = None if fused else block.mlp.act
        self._mlp_out = _linear(block.mlp.c_proj, dtype)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, T, H, D) of x (N, T, E), and its keys and values (N, T, 2, H, D)."""
        count, length, width = x.shape
        projected = self._qkv(self._attention_norm(x).to(self._dtype).view(-1, width))
        parts = projected.view(count, length, 3, self._heads, width // self._heads)
        return parts[:, :, 0], parts[:, :, 1:]

    def attend(self, query: Tensor, keys_values: Tensor, *, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """Attention (N, T, H, D) of queries (N, T, H, D) to (N, S, 2, H, D), under an additive mask (N, T, S)."""
        query = query.transpose(1, 2)
        keys, values = keys_values.transpose(1, 3).unbind(2)
        attended: Tensor = functional.scaled_dot_product_attention(
            query, keys, values, None if mask is None else mask[:, None], is_causal=causal, scale=self._scale
        )
        return attended.transpose(1, 2)

    def output(self, x: Tensor, attended: Tensor) -> Tensor:
        """The block's output (N, T, E) for its input x and what `attend` returned (N, T, H, D)."""
        x = self._add(x, self._attention_out, attended)
        hidden = self._mlp_in(self._mlp_norm(x).to(self._dtype).flatten(0, 1))
        return self._add(x, self._mlp_out, hidden if self._activation is None else self._activation(hidden))

    def _add(self, x: Tensor, layer: Linear, y: Tensor) -> Tensor:
        """x (N, T, E) plus `layer` of y, which has as many rows."""
        rows = y.reshape(x.shape[0] * x.shape[1], -1)
        if x.dtype == self._dtype:
            return layer(rows, residual=x.reshape(len(rows), -1)).view(x.shape)
        return x + layer(rows).view(x.shape)


def _norm(layer: Any, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    weight, bias, epsilon = layer.weight.to(dtype), layer.bias.to(dtype), layer.eps
    return lambda x: functional.layer_norm(x, weight.shape, weight, bias, epsilon)


def _linear(layer: Any, dtype: torch.dtype, activation: Activation = "none") -> Linear:
    # GPT-2's Conv1D layers store their weights transposed.
    return Linear(effective_weight(layer).T.to(dtype), effective_bias(layer).to(dtype), activation)


def effective_weight(layer: Any) -> Tensor:
    """The weight (in, out) of a layer, with its adapters applied."""
    base = getattr(layer, "base_layer", None)
    if base is None:
        weight: Tensor = layer.weight
        return weight
    weight = base.weight
    for name in layer.active_adapters:
        weight = weight + layer.get_delta_weight(name)
    return weight


def effective_bias(layer: Any) -> Tensor:
    """The bias (out,) of a layer, with or without adapters."""
    bias: Tensor = getattr(layer, "base_layer", layer).bias
    return bias
