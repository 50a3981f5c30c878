"""A CNN-LSTM decoded one token at a time: a `Stepper` for the decoding engine.

All hypotheses are one batch of the LSTM cell. The contribution of each token's embedding to the gates is
looked up in a table, that of the pooled feature is computed once an image, and the hypotheses of an image
share one copy of its grid. Shapes: B images, N groups of K hypotheses, R = N · K, A heads, L grid cells,
D width of a head, H hidden, V vocabulary.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear
from captioning.decoding.lm_head import LMHead
from captioning.decoding.stepper import as_groups
from captioning.models.prepared import prepared

if TYPE_CHECKING:
    from captioning.models.cnn_lstm import CnnLstm, Features


class LstmWeights:
    """What is computed from the weights once: the table of token gates, and packed layers."""

    def __init__(self, model: "CnnLstm", dtype: torch.dtype) -> None:
        lstm: Any = model.lstm
        size = model.settings.embedding_size
        token_weight, image_weight = lstm.weight_ih_l0[:, :size], lstm.weight_ih_l0[:, size:]
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        self.dtype = dtype
        self.token_gates = model.embed.weight @ token_weight.T + bias
        self.initial_state = Linear(model.initial.weight.to(dtype), model.initial.bias.to(dtype), "tanh")
        self.image_gates = Linear(image_weight)
        self.state_gates = Linear(lstm.weight_hh_l0.to(dtype))
        self.output = Linear(model.speak.weight.to(dtype), model.speak.bias.to(dtype), "tanh")
        self.lm_head = LMHead(model.embed.weight.to(dtype), model.bias.to(dtype))
        self.has_attention = model.attend is not None
        if model.attend is not None:
            query, gate, out = model.attend.query, model.attend.gate, model.attend.out
            # Query and gate have the same input: one product.
            self.query_and_gate = Linear(
                torch.cat([query.weight, gate.weight]).to(dtype), torch.cat([query.bias, gate.bias]).to(dtype)
            )
            self.attention_out = Linear(out.weight.to(dtype), out.bias.to(dtype))


class LstmStepper:
    """Drives a `CnnLstm`. A hypothesis's state is the LSTM's hidden state and cell."""

    def __init__(self, model: "CnnLstm", features: "Features", prompt: Sequence[int]) -> None:
        self._weights = prepared(model, lambda dtype: LstmWeights(model, dtype))
        self.lm_head = self._weights.lm_head
        self._features = features
        self._first_tokens = [model.bos_id, *prompt]
        self._initial_state = self._weights.initial_state(features.pooled.to(self._weights.dtype)).chunk(2, dim=-1)
        pooled = features.pooled.to(self._weights.token_gates.dtype)
        self._image_gates = self._weights.image_gates(pooled)
        self._images = torch.arange(len(pooled), device=pooled.device)

    def start(self) -> Tensor:
        """States (B, E) that predict the first token."""
        features = self._features
        self._images = torch.arange(len(features.pooled), device=features.pooled.device)
        # Empty, so that the first `advance` selects keys and values: an image may go on as several groups or as none.
        self._group_images, self._keys, self._values = self._images[:0], features.keys, features.values
        self._hidden, self._cell = (part.to(self._image_gates.dtype) for part in self._initial_state)
        for token in self._first_tokens:
            self._step(torch.full_like(self._images, token))
        return self._output(1)

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); returns states (R, E)."""
        groups, grouped = as_groups(rows, self._images.device)
        selected = groups.flatten()
        self._images, self._hidden, self._cell = self._images[selected], self._hidden[selected], self._cell[selected]
        if not grouped or len(groups) != len(self._group_images):
            self._group_images = self._images.view(groups.shape)[:, 0]
            self._keys = self._features.keys[self._group_images]
            self._values = self._features.values[self._group_images]
        self._step(torch.as_tensor(tokens, device=self._images.device).flatten())
        return self._output(groups.shape[1])

    def _step(self, tokens: Tensor) -> None:
        weights = self._weights
        gates = functional.embedding(tokens, weights.token_gates) + self._image_gates[self._images]
        gates = gates + weights.state_gates(self._hidden.to(weights.dtype))
        input_gate, forget_gate, new_cell, output_gate = gates.chunk(4, dim=1)
        self._cell = torch.sigmoid(forget_gate) * self._cell + torch.sigmoid(input_gate) * torch.tanh(new_cell)
        self._hidden = torch.sigmoid(output_gate) * torch.tanh(self._cell)

    def _output(self, beams: int) -> Tensor:
        weights, states = self._weights, self._hidden
        if weights.has_attention:
            queries, gate = weights.query_and_gate(states.to(weights.dtype)).chunk(2, dim=1)
            keys, values = self._keys, self._values
            count, heads, _, size = keys.shape
            queries = queries.view(count, beams, heads, size).transpose(1, 2).to(keys.dtype)
            attended = functional.scaled_dot_product_attention(queries, keys, values)
            attended = weights.attention_out(attended.transpose(1, 2).reshape(count * beams, -1).to(weights.dtype))
            states = states + torch.sigmoid(gate) * attended
        return weights.output(states.to(weights.dtype))
