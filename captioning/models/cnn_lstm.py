"""CNN-LSTM: a CNN's grid of features, attended to by an LSTM that writes the caption.

The LSTM reads the words and the pooled feature; its state then asks the grid (Lu et al. 2017,
"Knowing when to look": attention after the recurrence, with a gate that may turn from the
picture), so that teacher forcing runs the recurrence once over a whole caption. The heads are
those of Vaswani et al. 2017. Without attention the pooled feature alone speaks (Vinyals et al.
2015). Shapes: B images, N captions, R hypotheses, T tokens, L grid cells, D channels, H hidden,
E embedding, A heads, V vocabulary.
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
    """What the encoder found: keys and values (B, A, L, H/A) of the grid, and the pooled feature (B, H)."""

    keys: Tensor
    values: Tensor
    pooled: Tensor


class CnnLstm(CaptionModel):
    """CNN encoder, projection, optional attention, one LSTM, embeddings tied to the vocabulary layer."""

    pretrained_parts = ("encoder.",)
    encoder_parts = ("encoder.",)
    # The recurrence is one call of cuDNN's, and what surrounds it depends on the captions' lengths.
    networks = ("encoder.stem", "encoder.rest")

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
        """Pixels (B, S, S, 3) uint8 to the map (B, C, h, w) where the frozen part of the encoder ends."""
        return self.encoder.stem(self.normalise(pixels)) if self.encoder.has_stem else pixels

    def stem_identity(self) -> str | None:
        """SHA-256 over the frozen part of the encoder; None where its first piece is trained."""
        return self.encoder.stem_identity()

    def finish(self, stem: Tensor) -> Features:
        """What `stem` gave, kept as float16 or not, to `Features`."""
        if not self.encoder.has_stem:
            stem = self.normalise(stem)
        elif stem.dtype == torch.float16:
            # Convolutions like their channels last, and a kept stem has lost the memory order.
            stem = stem.to(self.bias.dtype, memory_format=torch.channels_last)
        grid = self.feature_dropout(self.encoder.rest(stem))
        pooled = self.pool(grid.mean(1))
        if self.attend is None:
            empty = pooled.new_zeros(len(pooled), 1, 0, 1)
            return Features(empty, empty, pooled)
        return Features(*self.attend.remember(grid), pooled)

    def see(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, S, S, 3) uint8 to keys and values (B, A, L, H/A), and the pooled feature (B, H)."""
        features = self.finish(self.stem(pixels))
        return features.keys, features.values, features.pooled

    def features(self, seen: tuple[Tensor, ...]) -> Features:
        """What `see` gave, by name."""
        return Features(*seen)

    def forward(
        self, features: Features, captions: Tensor, images: Tensor, said: Tensor | None = None
    ) -> TeacherForced:
        """Score `captions` (N, T) of the `images` (N,) by teacher forcing, `said` (N, T) being read in their place."""
        states, asked = self._read(captions if said is None else said, captions, features, images)
        looked, penalty = None, None
        if self.attend is not None:
            seen, weights = self._look(self.attend, states, features, images, asked)
            looked = self.attend.answer(states, seen[asked])
            if self.settings.attention_penalty:
                penalty = self._coverage_penalty(weights, asked)
        return TeacherForced(self._logits(self._speak(states, looked)), penalty)

    @property
    def has_attention(self) -> bool:
        """Whether it was made with attention."""
        return self.attend is not None

    @torch.no_grad()
    def attention(self, features: Features, captions: Tensor, images: Tensor) -> Tensor | None:
        """Weights (N, T, rows, columns) over the grid, the mean of the heads; None without attention."""
        if self.attend is None:
            return None
        features = Features(features.keys.float(), features.values.float(), features.pooled.float())
        states, asked = self._read(captions, captions, features, images)
        weights = self._look(self.attend, states, features, images, asked)[1].mean(1)
        side = math.isqrt(weights.shape[-1])  # pixels are square, and so is what is left of them
        return weights.reshape(*weights.shape[:2], side, side)

    def read_text(self, captions: Tensor) -> TeacherForced:
        """Score `captions` (N, T) without images: the LSTM attends to nothing, and sees a vector of zeros."""
        asked = captions != PAD_TARGET
        words = self.dropout(self.embed(self._inputs(captions)[asked]))
        nothing = self.bias.new_zeros(1, self.settings.hidden_size)
        states = self._recur(words, nothing, captions.new_zeros(len(captions)), asked)
        return TeacherForced(self._logits(self._speak(states, None)))

    def stepper(self, features: Features, prompt: list[int] | None = None) -> LstmStepper:
        """Decode the images of `features`, each caption going on from `prompt`."""
        return LstmStepper(self, features, prompt or [])

    def max_positions(self) -> int | None:
        """An LSTM has no bound."""
        return None

    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes of the settings with which this share of the encoder learns."""
        parts = {"frozen": None, "all": "all"}
        return {"encoder": EncoderSettings.tuning(parts[share] if share in parts else self.encoder.late_part())}

    @torch.no_grad()
    def grow_vocabulary(self, size: int) -> None:
        """Make room for `size` words; new ones begin as the mean of those there are."""
        more, words = size - self.vocab_size, self.embed.weight
        new = words.mean(0, keepdim=True).expand(more, -1)
        self.embed.weight = nn.Parameter(torch.cat([words, new]))
        self.embed.num_embeddings = size
        self.bias = nn.Parameter(torch.cat([self.bias, self.bias.mean().expand(more)]))
        self.vocab_size = size

    def _read(self, read: Tensor, captions: Tensor, features: Features, images: Tensor) -> tuple[Tensor, Tensor]:
        """The LSTM's states (K, H) as it reads `read` in the place of `captions` (N, T), and where they are (N, T)."""
        asked = captions != PAD_TARGET
        words = self.dropout(self.embed(self._inputs(read)[asked]))
        return self._recur(words, features.pooled, images, asked), asked

    def _look(
        self, attend: "Attention", states: Tensor, features: Features, images: Tensor, asked: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What states (K, H) find in the grid, laid out by caption (N, T, H), and the weights (N, A, T, L)."""
        queries = attend.ask(states)
        # Attention alone is laid out by caption, pads and all: it is a small part of the work.
        laid_out = queries.new_zeros(*asked.shape, queries.shape[-1])
        laid_out[asked] = queries
        return attend.look(laid_out, features.keys[images], features.values[images])

    def _inputs(self, read: Tensor) -> Tensor:
        # The one place where inputs and targets part by one token.
        return torch.cat([read.new_full((len(read), 1), self.bos_id), read[:, :-1]], dim=1)

    def _recur(self, words: Tensor, pooled: Tensor, images: Tensor, asked: Tensor) -> Tensor:
        """The LSTM's states (K, H) at `words` (K, E), the tokens read caption by caption where `asked` (N, T)."""
        packed = Packed.of(asked)
        hidden, cell = self._initial_state(pooled)
        hidden, cell = hidden[images], cell[images]
        owners = images[:, None].expand_as(asked)[asked][packed.to_packed]
        words = words[packed.to_packed]
        lstm: Any = self.lstm
        if words.device.type == "cpu":
            size = words.shape[1]
            of_word, of_image = lstm.weight_ih_l0[:, :size], lstm.weight_ih_l0[:, size:]
            gates = functional.linear(words, of_word).float()
            gates = gates + functional.linear(pooled, of_image, lstm.bias_ih_l0 + lstm.bias_hh_l0).float()[owners]
            states = recur(gates, hidden, cell, lstm.weight_hh_l0, packed)
        else:
            # Autocast would have cuDNN's LSTM in float16 whatever it asks for, where small gradients become nothing.
            with torch.autocast(words.device.type, enabled=False):
                seen = torch.cat([words, pooled[owners]], dim=1).float()
                first = hidden[packed.order][None].float(), cell[packed.order][None].float()
                states = lstm(PackedSequence(seen, torch.tensor(packed.sizes)), first)[0].data
        return states[packed.to_captions]

    def _initial_state(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        hidden, cell = torch.tanh(self.initial(pooled)).chunk(2, dim=-1)
        return hidden, cell

    def _speak(self, states: Tensor, looked: Tensor | None) -> Tensor:
        spoken: Tensor = self.speak(self.dropout(states if looked is None else states + looked))
        return torch.tanh(spoken)

    def _logits(self, spoken: Tensor) -> Tensor:
        return functional.linear(self.dropout(spoken), self.embed.weight, self.bias)

    def _coverage_penalty(self, weights: Tensor, asked: Tensor) -> Tensor:
        """(K,): for each token, λ times its caption's mean over cells of (1 − Σ_t α_t)², scaled so that Σα is T/L."""
        per_token = weights.mean(1) * asked[..., None]
        length = asked.sum(1, keepdim=True).clamp(min=1)
        cells = per_token.shape[-1]
        per_caption = (1 - per_token.sum(1) * cells / length).square().mean(-1)
        penalty: Tensor = self.settings.attention_penalty * per_caption[:, None].expand_as(asked)[asked]
        return penalty


class Attention(nn.Module):
    """Multi-head attention of LSTM states over the grid, with a gate."""

    def __init__(self, channels: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.memory = nn.Sequential(nn.Linear(channels, hidden), nn.LayerNorm(hidden), nn.ReLU())
        self.keys_values = nn.Linear(hidden, 2 * hidden)
        self.query = nn.Linear(hidden, hidden)
        self.gate = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, hidden)

    def remember(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Grid (B, L, D) to keys and values, each (B, A, L, H/A)."""
        keys, values = self.keys_values(self.memory(grid)).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def forward(self, states: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """States (N, T, H) to what they see (N, T, H)."""
        return self.answer(states, self.look(self.ask(states), keys, values)[0])

    def ask(self, states: Tensor) -> Tensor:
        """States (…, H) to queries (…, H)."""
        queries: Tensor = self.query(states)
        return queries

    def look(self, queries: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (N, T, H) to the mean of the values that they find (N, T, H), and the weights (N, A, T, L)."""
        scores = self._split(queries).to(keys.dtype) @ keys.transpose(2, 3) * (queries.shape[-1] / self.heads) ** -0.5
        weights = scores.float().softmax(-1)
        return (weights.to(values.dtype) @ values).transpose(1, 2).flatten(2), weights

    def answer(self, states: Tensor, seen: Tensor) -> Tensor:
        """What was seen (…, H), let through as far as the states (…, H) want it."""
        answer: Tensor = torch.sigmoid(self.gate(states)) * self.out(seen)
        return answer

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)
