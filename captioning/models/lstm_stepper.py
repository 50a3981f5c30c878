"""A CNN-LSTM's decoder driven one token at a time: a `Stepper` for the decoding engine.

All hypotheses are one batch of the LSTM's cell. The product of each word's embedding with the gates
is looked up in a table, that of the pooled feature is made once an image, and the hypotheses of an
image look at one copy of its grid. Shapes: B images, N lines of K hypotheses, R = N · K, A heads,
L grid cells, D width of a head, H hidden, V words.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.decoding.linear import Linear
from captioning.decoding.stepper import as_lines
from captioning.decoding.vocabulary import Vocabulary
from captioning.models.prepared import prepared

if TYPE_CHECKING:
    from captioning.models.cnn_lstm import CnnLstm, Features


class LstmWeights:
    """What is made of the weights once: the table of words' gates, and packed layers."""

    def __init__(self, model: "CnnLstm", dtype: torch.dtype) -> None:
        lstm: Any = model.lstm
        size = model.settings.embedding_size
        of_word, of_image = lstm.weight_ih_l0[:, :size], lstm.weight_ih_l0[:, size:]
        bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
        self.dtype = dtype
        self.word_gates = model.embed.weight @ of_word.T + bias
        self.begin = Linear(model.initial.weight.to(dtype), model.initial.bias.to(dtype), "tanh")
        self.image_gates = Linear(of_image)
        self.state_gates = Linear(lstm.weight_hh_l0.to(dtype))
        self.speak = Linear(model.speak.weight.to(dtype), model.speak.bias.to(dtype), "tanh")
        self.vocabulary = Vocabulary(model.embed.weight.to(dtype), model.bias.to(dtype))
        self.attends = model.attend is not None
        if model.attend is not None:
            ask, gate, out = model.attend.query, model.attend.gate, model.attend.out
            # Query and gate read the same: one product.
            self.ask = Linear(
                torch.cat([ask.weight, gate.weight]).to(dtype), torch.cat([ask.bias, gate.bias]).to(dtype)
            )
            self.out = Linear(out.weight.to(dtype), out.bias.to(dtype))


class LstmStepper:
    """Drives a `CnnLstm`. A hypothesis's state is its two LSTM vectors."""

    def __init__(self, model: "CnnLstm", features: "Features", prompt: Sequence[int]) -> None:
        self._weights = prepared(model, lambda dtype: LstmWeights(model, dtype))
        self.vocabulary = self._weights.vocabulary
        self._features = features
        self._first = [model.bos_id, *prompt]
        self._begin = self._weights.begin(features.pooled.to(self._weights.dtype)).chunk(2, dim=-1)
        pooled = features.pooled.to(self._weights.word_gates.dtype)
        self._of_images = self._weights.image_gates(pooled)
        self._images = torch.arange(len(pooled), device=pooled.device)

    def start(self) -> Tensor:
        """States (B, E) that tell the first token."""
        features = self._features
        self._images = torch.arange(len(features.pooled), device=features.pooled.device)
        # Of the images that go on from here some may have several lines and others none: the first `advance` looks.
        self._lines, self._keys, self._values = self._images[:0], features.keys, features.values
        self._hidden, self._cell = (part.to(self._of_images.dtype) for part in self._begin)
        for token in self._first:
            self._step(torch.full_like(self._images, token))
        return self._speak(1)

    def advance(self, tokens: Tensor, rows: Tensor | Sequence[int]) -> Tensor:
        """Append `tokens` to the hypotheses `rows`, both (R,) or (N, K); states (R, E)."""
        lines, ordered = as_lines(rows, self._images.device)
        follow = lines.flatten()
        self._images, self._hidden, self._cell = self._images[follow], self._hidden[follow], self._cell[follow]
        if not ordered or len(lines) != len(self._lines):
            self._lines = self._images.view(lines.shape)[:, 0]
            self._keys, self._values = self._features.keys[self._lines], self._features.values[self._lines]
        self._step(torch.as_tensor(tokens, device=self._images.device).flatten())
        return self._speak(lines.shape[1])

    def _step(self, tokens: Tensor) -> None:
        weights = self._weights
        gates = functional.embedding(tokens, weights.word_gates) + self._of_images[self._images]
        gates = gates + weights.state_gates(self._hidden.to(weights.dtype))
        enter, forget, new, out = gates.chunk(4, dim=1)
        self._cell = torch.sigmoid(forget) * self._cell + torch.sigmoid(enter) * torch.tanh(new)
        self._hidden = torch.sigmoid(out) * torch.tanh(self._cell)

    def _speak(self, beams: int) -> Tensor:
        weights, states = self._weights, self._hidden
        if weights.attends:
            asked, gate = weights.ask(states.to(weights.dtype)).chunk(2, dim=1)
            keys, values = self._keys, self._values
            count, heads, _, size = keys.shape
            queries = asked.view(count, beams, heads, size).transpose(1, 2).to(keys.dtype)
            seen = functional.scaled_dot_product_attention(queries, keys, values)
            seen = weights.out(seen.transpose(1, 2).reshape(count * beams, -1).to(weights.dtype))
            states = states + torch.sigmoid(gate) * seen
        return weights.speak(states.to(weights.dtype))
