"""CNN-LSTM: a CNN's grid of features, attended to by an LSTM that writes the caption.

The LSTM reads the tokens and the pooled feature, and its state then attends to the grid (Lu et al.
2017, "Knowing when to look": attention after the recurrence, with a gate that can ignore the
image). So teacher forcing runs the recurrence once over a whole caption. Attention is multi-head
(Vaswani et al. 2017). Without it, only the pooled feature is used (Vinyals et al. 2015).
Shapes: B images, N captions, T tokens, K targets, L grid cells, D channels, H hidden, E embedding,
A heads, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from captioning.data.preprocess import PreprocessSettings
from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced, Vocabulary
from captioning.models.cnn_lstm_settings import CnnLstmSettings
from captioning.models.encoder_settings import EncoderSettings, EncoderShare
from captioning.models.encoders import GridEncoder
from captioning.models.lstm_stepper import LstmStepper
from captioning.models.pixels import Normalise
from captioning.models.recurrence import Packed, recur


@dataclass(frozen=True)
class Features:
    """The encoder's output: keys and values (B, A, L, H/A) of the grid, and the pooled feature (B, H)."""

    keys: Tensor
    values: Tensor
    pooled: Tensor


class CnnLstm(CaptionModel):
    """CNN encoder, projection, optional attention, one LSTM, embeddings tied to the output layer."""

    encoder_prefixes = ("encoder.",)
    # The recurrence is one call of cuDNN, and the rest of the decoder depends on the captions' lengths.
    compilable = ("encoder.stem", "encoder.rest")

    def __init__(
        self, settings: CnnLstmSettings, vocabulary: Vocabulary, preprocess: PreprocessSettings, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.settings = settings
        self.vocab_size = vocabulary.size
        self.bos_id = vocabulary.bos_id
        hidden, embedding = settings.hidden_size, settings.embedding_size
        self.normalise = Normalise(preprocess.mean, preprocess.std)
        self.encoder = GridEncoder(settings.encoder, pretrained=pretrained)
        # Where `pretrained` is false, a checkpoint's weights follow.
        random = pretrained and settings.encoder.weights == "random"
        self.pretrained_prefixes = () if random else self.encoder_prefixes
        self.pool = nn.Sequential(nn.Linear(self.encoder.channels, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.feature_dropout = nn.Dropout(settings.feature_dropout)
        self.embed = nn.Embedding(vocabulary.size, embedding)
        nn.init.normal_(self.embed.weight, std=embedding**-0.5)
        self.dropout = nn.Dropout(settings.dropout)
        self.initial = nn.Linear(hidden, 2 * hidden)
        self.lstm = nn.LSTM(embedding + hidden, hidden, batch_first=True)
        self.attend = Attention(self.encoder.channels, hidden, settings.heads) if settings.attention else None
        self.speak = nn.Linear(hidden, embedding)
        self.bias = nn.Parameter(torch.zeros(vocabulary.size))

    def stem(self, pixels: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8 to the feature map (B, C, h, w) where the frozen part of the encoder ends."""
        return self.encoder.stem(self.normalise(pixels)) if self.encoder.has_stem else pixels

    def stem_identity(self) -> str | None:
        """SHA-256 of the frozen part of the encoder; None where its first piece is trained."""
        return self.encoder.stem_identity()

    def encode_stem(self, stem: Tensor) -> Features:
        """`Features` from the output of `stem`, cached as float16 or not."""
        if not self.encoder.has_stem:
            stem = self.normalise(stem)
        elif stem.dtype == torch.float16:
            # Convolutions are fastest with channels last, and a cached stem has lost that memory format.
            stem = stem.to(self.bias.dtype, memory_format=torch.channels_last)
        grid = self.feature_dropout(self.encoder.rest(stem))
        pooled = self.pool(grid.mean(1))
        if self.attend is None:
            empty = pooled.new_zeros(len(pooled), 1, 0, 1)
            return Features(empty, empty, pooled)
        return Features(*self.attend.project_grid(grid), pooled)

    def encoder_outputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, S, S, 3) uint8 to keys and values (B, A, L, H/A), and the pooled feature (B, H)."""
        features = self.encode_stem(self.stem(pixels))
        return features.keys, features.values, features.pooled

    def features(self, outputs: tuple[Tensor, ...]) -> Features:
        """The result of `encoder_outputs`, by name."""
        return Features(*outputs)

    def forward(
        self, features: Features, captions: Tensor, images: Tensor, context: Tensor | None = None
    ) -> TeacherForced:
        """Score `captions` (N, T) of the `images` (N,) by teacher forcing; `context` (N, T) replaces them as input."""
        states, targets = self._states(captions if context is None else context, captions, features, images)
        attended, penalty = None, None
        if self.attend is not None:
            padded, weights = self._attend(self.attend, states, features, images, targets)
            attended = self.attend.output(states, padded[targets])
            if self.settings.attention_penalty:
                penalty = self._coverage_penalty(weights, targets)
        return TeacherForced(self._logits(self._output(states, attended)), penalty)

    @property
    def has_attention(self) -> bool:
        """Whether the model was built with attention."""
        return self.attend is not None

    @torch.no_grad()
    def attention(self, features: Features, captions: Tensor, images: Tensor) -> Tensor | None:
        """Weights (N, T, rows, columns) over the grid, the mean of the heads; None without attention."""
        if self.attend is None:
            return None
        features = Features(features.keys.float(), features.values.float(), features.pooled.float())
        states, targets = self._states(captions, captions, features, images)
        weights = self._attend(self.attend, states, features, images, targets)[1].mean(1)
        side = math.isqrt(weights.shape[-1])  # pixels are square, and so is the grid
        return weights.reshape(*weights.shape[:2], side, side)

    def forward_text(self, captions: Tensor) -> TeacherForced:
        """Score `captions` (N, T) without images: no attention, and zeros for the pooled feature."""
        targets = captions != PAD_TARGET
        embeddings = self.dropout(self.embed(self._inputs(captions)[targets]))
        zeros = self.bias.new_zeros(1, self.settings.hidden_size)
        states = self._recur(embeddings, zeros, captions.new_zeros(len(captions)), targets)
        return TeacherForced(self._logits(self._output(states, None)))

    def stepper(self, features: Features, prompt: list[int] | None = None) -> LstmStepper:
        """Decode the images of `features`, each caption going on from `prompt`."""
        return LstmStepper(self, features, prompt or [])

    def max_positions(self) -> int | None:
        """None: an LSTM has no bound."""
        return None

    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes to the settings that train this share of the encoder."""
        parts = {"frozen": None, "all": "all"}
        return {"encoder": EncoderSettings.tuning(parts[share] if share in parts else self.encoder.late_part())}

    @torch.no_grad()
    def grow_vocabulary(self, size: int) -> None:
        """Extend the vocabulary to `size` tokens; new ones start as the mean of the others."""
        more, embeddings = size - self.vocab_size, self.embed.weight
        new = embeddings.mean(0, keepdim=True).expand(more, -1)
        self.embed.weight = nn.Parameter(torch.cat([embeddings, new]))
        self.embed.num_embeddings = size
        self.bias = nn.Parameter(torch.cat([self.bias, self.bias.mean().expand(more)]))
        self.vocab_size = size

    def _states(self, read: Tensor, captions: Tensor, features: Features, images: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's states (K, H) as it reads `read` in place of `captions` (N, T), and the mask (N, T) of targets."""
        targets = captions != PAD_TARGET
        embeddings = self.dropout(self.embed(self._inputs(read)[targets]))
        return self._recur(embeddings, features.pooled, images, targets), targets

    def _attend(
        self, attend: "Attention", states: Tensor, features: Features, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the states (K, H) attend to, padded by caption (N, T, H), and the weights (N, A, T, L)."""
        queries = attend.project_queries(states)
        # Only attention runs on padded captions: it is a small part of the work.
        padded = queries.new_zeros(*targets.shape, queries.shape[-1])
        padded[targets] = queries
        return attend.attend(padded, features.keys[images], features.values[images])

    def _inputs(self, read: Tensor) -> Tensor:
        # The one place where inputs are shifted against targets.
        return torch.cat([read.new_full((len(read), 1), self.bos_id), read[:, :-1]], dim=1)

    def _recur(self, embeddings: Tensor, pooled: Tensor, images: Tensor, targets: Tensor) -> Tensor:
        """The LSTM's states (K, H) for input `embeddings` (K, E), caption by caption where `targets` (N, T) is true."""
        packed = Packed.of(targets)
        hidden, cell = self._initial_state(pooled)
        hidden, cell = hidden[images], cell[images]
        packed_images = images[:, None].expand_as(targets)[targets][packed.to_packed]
        embeddings = embeddings[packed.to_packed]
        lstm: Any = self.lstm
        if embeddings.device.type == "cpu":
            size = embeddings.shape[1]
            token_weight, image_weight = lstm.weight_ih_l0[:, :size], lstm.weight_ih_l0[:, size:]
            gates = functional.linear(embeddings, token_weight).float()
            image_gates = functional.linear(pooled, image_weight, lstm.bias_ih_l0 + lstm.bias_hh_l0).float()
            gates = gates + image_gates[packed_images]
            states = recur(gates, hidden, cell, lstm.weight_hh_l0, packed)
        else:
            # Under autocast cuDNN's LSTM would run in float16 in any case, where small gradients vanish.
            with torch.autocast(embeddings.device.type, enabled=False):
                inputs = torch.cat([embeddings, pooled[packed_images]], dim=1).float()
                first = hidden[packed.order][None].float(), cell[packed.order][None].float()
                states = lstm(PackedSequence(inputs, torch.tensor(packed.sizes)), first)[0].data
        return states[packed.to_captions]

    def _initial_state(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = torch.tanh(self.initial(pooled)).chunk(2, dim=-1)
        return hidden, cell

    def _output(self, states: Tensor, attended: Tensor | None) -> Tensor:
        output: Tensor = self.speak(self.dropout(states if attended is None else states + attended))
        return torch.tanh(output)

    def _logits(self, output: Tensor) -> Tensor:
        return functional.linear(self.dropout(output), self.embed.weight, self.bias)

    def _coverage_penalty(self, weights: Tensor, targets: Tensor) -> Tensor:
        """(K,): for each token, λ times its caption's mean over cells of (1 − Σ_t α_t)², scaled so that Σα is T/L."""
        per_token = weights.mean(1) * targets[..., None]
        length = targets.sum(1, keepdim=True).clamp(min=1)
        cells = per_token.shape[-1]
        per_caption = (1 - per_token.sum(1) * cells / length).square().mean(-1)
        penalty: Tensor = self.settings.attention_penalty * per_caption[:, None].expand_as(targets)[targets]
        return penalty


class Attention(nn.Module):
    """Multi-head attention of LSTM states to the grid, with a gate."""

    def __init__(self, channels: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.memory = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.keys_values = nn.Linear(hidden, 2 * hidden)
        self.query = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def project_grid(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Grid (B, L, D) to keys and values, each (B, A, L, H/A)."""
        keys, values = self.keys_values(self.memory(grid)).chunk(2, dim=-1)
        return self._split_heads(keys), self._split_heads(values)

    def forward(self, states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """States (N, T, H) to gated attention (N, T, H)."""
        return self.output(states, self.attend(self.project_queries(states), keys, values)[0])

    def project_queries(self, states: Tensor) -> Tensor:
        """States (…, H) to queries (…, H)."""
        queries: Tensor = self.query(states)
        return queries

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, T, H) to the weighted means of the values (N, T, H), and the weights (N, A, T, L)."""
        scale = (queries.shape[-1] / self.heads) ** -0.5
        scores = self._split_heads(queries).to(keys.dtype) @ keys.transpose(2, 3) * scale
        weights = scores.float().softmax(-1)
        return (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2), weights

    def output(self, states: Tensor, attended: Tensor) -> Tensor:
        """`attended` (…, H), projected and gated by the states (…, H)."""
        output: Tensor = torch.sigmoid(self.gate(states)) * self.out(attended)
        return output

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)
