"""CLIP-GPT2: CLIP's view of the image, mapped to a prefix that GPT-2 continues as the caption.

ClipCap (Mokady et al. 2021). Knows pixels and token ids; `towers` and `cnn_tower` make the two
networks and `mapper` what joins them. Shapes: B images, N captions, T tokens, M words read, K
targets, P prefix, E width of GPT-2, V vocabulary.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from captioning.config import to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.decoding.stepper import Stepper
from captioning.decoding.vocabulary import Vocabulary as Words
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced, Vocabulary
from captioning.models.carried_state import carried, keep_tied
from captioning.models.clip_fit import check_fit, check_normalisation, resolved
from captioning.models.clip_gpt2_settings import LEARNING, ClipGpt2Settings
from captioning.models.cnn_tower import CnnImageTower
from captioning.models.encoder_settings import EncoderSettings, EncoderShare
from captioning.models.gpt2_recorded import RecordedGpt2Stepper, Rooms
from captioning.models.gpt2_stepper import Gpt2Stepper
from captioning.models.gpt2_weights import Gpt2Weights
from captioning.models.lora import add_adapters, is_adapter, merged, scale_of
from captioning.models.mapper import make_mapper
from captioning.models.packing import GROUPS, Packing, pack
from captioning.models.pixels import Normalise
from captioning.models.prepared import prepared
from captioning.models.state_digest import state_digest
from captioning.models.tower_settings import ClipTower, CnnTower, Gpt2Tower
from captioning.models.towers import grow_gpt2, load_clip, load_gpt2, make_clip, make_gpt2
from captioning.models.warm_start import load_mapper


@dataclasses.dataclass(frozen=True)
class Mapped:
    """Features that the mapper has read: the prefix (B, P, E)."""

    prefix: Tensor


class ClipGpt2(CaptionModel):
    """CLIP's image tower, a mapper, and GPT-2.

    Features are CLIP's image embeddings (B, D), or its states (B, L, D) for a mapper that reads
    patches. The last embedding of the prefix (or of the prompt) predicts the first token, so BOS
    is never an input. What does not learn has no gradients and stays in evaluation mode.
    """

    def __init__(
        self, settings: ClipGpt2Settings, vocabulary: Vocabulary, preprocess: PreprocessSettings, *, pretrained: bool
    ) -> None:
        super().__init__()
        if not pretrained and (isinstance(settings.clip, str) or isinstance(settings.gpt2, str)):
            raise CheckpointError("model.clip and model.gpt2 must be given as sizes, since no weights are fetched.")
        self.settings = resolved(settings, vocabulary)
        clip, gpt2 = self.settings.clip, self.settings.gpt2
        assert not isinstance(clip, str)
        assert isinstance(gpt2, Gpt2Tower)
        self.vocab_size = vocabulary.size
        self._eos_id = vocabulary.eos_id
        self._n_positions = gpt2.n_positions
        self._prefix_length = settings.mapper.prefix_length
        self._reads_patches = settings.mapper.source == "patches"
        self._learning = LEARNING[settings.train]
        self._records_steps = False
        check_fit(clip, gpt2, self._prefix_length, vocabulary, preprocess)

        self.normalise = Normalise(preprocess.mean, preprocess.std)
        self.clip: Any = CnnImageTower(clip, pretrained=pretrained) if isinstance(clip, CnnTower) else make_clip(clip)
        #: Length of the embedding that `embed_images` gives.
        self.embedding_size = clip.projection_dim
        feature_size = self.clip.visual_projection.in_features if self._reads_patches else clip.projection_dim
        self.mapper = _make_mapper(settings, feature_size, gpt2.n_embd)
        self.gpt2 = make_gpt2(gpt2, dropout=settings.dropout)
        if isinstance(settings.clip, str):
            load_clip(self.clip, settings.clip)
            check_normalisation(settings.clip, preprocess)
        if isinstance(settings.gpt2, str):
            load_gpt2(self.gpt2, settings.gpt2)
        if pretrained and settings.mapper.weights is not None:
            load_mapper(self.mapper, settings.mapper.weights)
        if settings.lora is not None:
            add_adapters(self.gpt2, settings.lora)
            self.register_buffer("lora_scale", scale_of(settings.lora))
        if settings.gradient_checkpointing:
            self.gpt2.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        seeing = ("clip.encoder.stem", "clip.encoder.rest") if isinstance(clip, CnnTower) else ("clip.forward",)
        self.networks = (*seeing, "mapper.forward", "_transform")
        self._name_parts(settings, pretrained)
        self._freeze()
        if gpt2.tie_word_embeddings:
            keep_tied(self)

    def stem(self, pixels: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8 to what the mapper reads, (B, D) or (B, L, D), where CLIP is frozen.

        Where it learns, to the map (B, C, h, w) at which a CNN's frozen part ends, or to the pixels as they are.
        """
        if "clip" not in self._learning:
            with torch.no_grad():
                return self._read_by_mapper(self.clip(pixel_values=self.normalise(pixels)))
        return self.clip.stem(self.normalise(pixels)) if self._has_cnn_stem else pixels

    def finish(self, stem: Tensor) -> Tensor:
        """What `stem` gave, kept as float16 or not, to what the mapper reads: (B, D) or (B, L, D)."""
        if "clip" not in self._learning:
            return stem.to(self._dtype)
        return self._read_by_mapper(self._seen(stem))

    def stem_identity(self) -> str | None:
        """SHA-256 over the part of CLIP that is frozen; None where all of it learns."""
        if "clip" in self._learning:
            return self.clip.encoder.stem_identity() if self._has_cnn_stem else None
        tower = self.settings.clip
        about = tower.encoder.name if isinstance(tower, CnnTower) else to_dict(tower)
        return state_digest(json.dumps([about, self.settings.mapper.source]), self.clip.state_dict())

    def see(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, S, S, 3) uint8 to what the mapper makes of them (B, P, E)."""
        return (self.mapper(self.encode(pixels)),)

    def features(self, seen: tuple[Tensor, ...]) -> Mapped:
        """What `see` gave, to be told from what is yet to be mapped."""
        return Mapped(*seen)

    def embed_images(self, stem: Tensor) -> Tensor:
        """CLIP's image embeddings (B, D) of what `stem` gave."""
        if "clip" in self._learning:
            embedding: Tensor = self._seen(stem).image_embeds
        elif not self._reads_patches:
            embedding = stem.to(self._dtype)
        elif isinstance(self.clip, CnnImageTower):
            embedding = self.clip.embed(stem.to(self._dtype))
        else:
            of_class = stem[:, 0].to(self._dtype)
            embedding = self.clip.visual_projection(self.clip.vision_model.post_layernorm(of_class))
        return embedding

    def forward(
        self,
        features: Tensor,
        captions: Tensor,
        images: Tensor,
        said: Tensor | None = None,
        *,
        prompt: Sequence[int] | None = None,
    ) -> TeacherForced:
        """Score `captions` (N, T) of the `images` (N,) by teacher forcing, `said` (N, T) being read in their place.

        With a `prompt` every caption is learned as its continuation: the prompt is read, and no
        loss is taken on it. Logits are (K, V) for the K targets.
        """
        return self._score(self.prefix(features, prompt or []), images.tolist(), captions, said, first_position=0)

    def read_text(self, captions: Tensor) -> TeacherForced:
        """Score `captions` (N, T) by GPT-2 alone. The end token stands where the prefix ends, and begins them."""
        start = self._embed(captions.new_full((len(captions), 1), self._eos_id))
        return self._score(start, range(len(captions)), captions, None, first_position=self._prefix_length - 1)

    def record_steps(self) -> None:
        """See `CaptionModel`."""
        self._records_steps = True

    def stepper(self, features: Tensor | Mapped, prompt: list[int] | None = None) -> Stepper:
        """Decode the images of `features`, each caption going on from `prompt`."""
        block = self.gpt2.transformer.h[0]
        assert not (block.training and block.gradient_checkpointing), "decoding is in evaluation mode"
        rooms, vocabulary = prepared(self.gpt2, self._prepare)
        prefix = self.prefix(features, prompt or [])
        if self._records_steps:
            return RecordedGpt2Stepper(rooms, vocabulary, prefix, check_length=self._check_length)
        return Gpt2Stepper(rooms.weights, vocabulary, prefix, check_length=self._check_length)

    def _prepare(self, dtype: torch.dtype) -> tuple[Rooms, Words]:
        # Some published vocabularies are padded beyond the tokenizer's.
        vocabulary = Words(self.gpt2.lm_head.weight[: self.vocab_size].to(dtype))
        return Rooms(Gpt2Weights(self.gpt2, dtype)), vocabulary

    def max_positions(self) -> int | None:
        """Positions that the prefix leaves for prompt and caption."""
        return self._n_positions - self._prefix_length

    def prefix(self, features: Tensor | Mapped, prompt: Sequence[int] = ()) -> Tensor:
        """What GPT-2 reads before the caption: the mapped features and the prompt, (B, P + prompt, E)."""
        mapped: Tensor = features.prefix if isinstance(features, Mapped) else self.mapper(features)
        if not prompt:
            return mapped
        words = self._embed(torch.tensor(list(prompt), device=mapped.device)).to(mapped.dtype)
        return torch.cat([mapped, words.expand(len(mapped), -1, -1)], dim=1)

    def train(self, mode: bool = True) -> "ClipGpt2":
        """Training mode for what learns; what does not stays in evaluation mode."""
        super().train(mode)
        for name in {"clip", "mapper", "gpt2"} - self._learning:
            self.get_submodule(name).eval()
        if self.settings.gradient_checkpointing:
            # Blocks that are frozen themselves are on the gradient's way to the mapper; their dropout stays off.
            for block in self.gpt2.transformer.h:
                block.training = mode
        return self

    def take_over(self, state: Mapping[str, Tensor]) -> None:
        """Take the weights of the same captioner with or without adapters. Raises `RuntimeError` for another's."""
        self.load_state_dict(carried(state, self.state_dict()))

    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes of the settings with which this share of CLIP learns; a transformer learns as a whole."""
        if share == "frozen":
            return {"train": "decoder"}
        if not isinstance(self.clip, CnnImageTower):
            return {"train": "all"}
        part = "all" if share == "all" else self.clip.encoder.late_part()
        return {"train": "all", "clip": {"encoder": EncoderSettings.tuning(part)}}

    def grow_vocabulary(self, size: int) -> None:
        """Make room for `size` tokens; new ones begin as the mean of those there are."""
        rows = grow_gpt2(self.gpt2, self.vocab_size, size)
        gpt2 = dataclasses.replace(self.settings.gpt2, vocab_size=rows)
        self.settings = dataclasses.replace(self.settings, gpt2=gpt2)
        self.vocab_size = size

    @property
    def plain_settings(self) -> ClipGpt2Settings:
        """The settings without what only training asks for."""
        settings: ClipGpt2Settings = dataclasses.replace(self.settings, lora=None, gradient_checkpointing=False)
        return settings

    def plain_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state of this model with adapters merged into the weights."""
        return merged(state)

    def _score(
        self, heads: Tensor, head_of: Sequence[int], captions: Tensor, said: Tensor | None, *, first_position: int
    ) -> TeacherForced:
        """Score captions, caption n behind number `head_of[n]` of the heads (B, P, E), which begin at a position."""
        asked = captions != PAD_TARGET
        lengths = asked.sum(1).tolist()
        self._check_length(first_position + heads.shape[1] + max(lengths, default=1) - 1)
        packing = pack(
            lengths,
            head_of,
            num_heads=len(heads),
            head_length=heads.shape[1],
            first_position=first_position,
            groups=1 if self.in_step else GROUPS,
            device=heads.device,
        )
        # The one place where inputs and targets part by one token: a word is read if another is asked for after it.
        words = self._embed((captions if said is None else said)[:, :-1][asked[:, 1:]])
        return TeacherForced(self._logits(self._read(heads, words, packing)))

    def _read(self, heads: Tensor, words: Tensor, packing: Packing) -> Tensor:
        """GPT-2's states (K, E) that predict the targets."""
        embeddings = torch.cat([heads.flatten(0, 1), words.to(heads.dtype)])
        states = [
            self._transform(functional.embedding(group.source, embeddings), group.positions, group.mask(heads.dtype))
            for group in packing.groups
        ]
        return torch.cat(states)[packing.answers]

    def _transform(self, inputs: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """GPT-2's states (R · S, E) of R rows of S places."""
        out = self.gpt2.transformer(
            inputs_embeds=inputs, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        states: Tensor = out.flatten(0, 1)
        return states

    def _seen(self, stem: Tensor) -> Any:
        """What a CLIP that learns sees in what `stem` gave."""
        return self.clip.rest(stem) if self._has_cnn_stem else self.clip(pixel_values=self.normalise(stem))

    def _read_by_mapper(self, seen: Any) -> Tensor:
        features: Tensor = seen.last_hidden_state if self._reads_patches else seen.image_embeds
        return features

    @property
    def _has_cnn_stem(self) -> bool:
        return isinstance(self.clip, CnnImageTower) and self.clip.has_stem

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.mapper.parameters()).dtype

    def _embed(self, tokens: Tensor) -> Tensor:
        words: Tensor = self.gpt2.transformer.wte(tokens)
        return words

    def _logits(self, states: Tensor) -> Tensor:
        # Some published vocabularies are padded beyond the tokenizer's.
        logits: Tensor = self.gpt2.lm_head(states)[..., : self.vocab_size].float()
        return logits

    def _check_length(self, positions: int) -> None:
        if positions > self._n_positions:
            raise SettingsError(
                f"GPT-2 has {self._n_positions} positions, of which the prefix takes {self._prefix_length}: prompt "
                f"and caption may have {self._n_positions - self._prefix_length} tokens. Lower "
                "decoding.max_new_tokens, or cut the captions that are trained on."
            )

    def _name_parts(self, settings: ClipGpt2Settings, pretrained: bool) -> None:
        """What holds weights already when training begins: from a reference, or soon from a checkpoint."""
        cnn = settings.clip.encoder if isinstance(settings.clip, CnnTower) else None
        self.encoder_parts = ("clip.",) if cnn is None else ("clip.encoder.",)
        holding = not pretrained or (isinstance(settings.clip, str) if cnn is None else cnn.weights != "random")
        parts = self.encoder_parts if holding else ()
        # Where GPT-2 has adapters they are all that learns in it, and they are new.
        if settings.lora is None and (not pretrained or isinstance(settings.gpt2, str)):
            parts = (*parts, "gpt2.")
        self.pretrained_parts = parts

    def _freeze(self) -> None:
        for name in {"clip", "mapper", "gpt2"} - self._learning:
            self.get_submodule(name).requires_grad_(False)
        if self.settings.lora is not None:
            for name, parameter in self.gpt2.named_parameters():
                parameter.requires_grad_(is_adapter(name))
        if self._reads_patches and self.settings.train != "clip":
            # The projection is not on the way from patches to captions, so no gradient would reach it.
            self.clip.visual_projection.requires_grad_(False)
            if isinstance(self.settings.clip, ClipTower):
                self.clip.vision_model.post_layernorm.requires_grad_(False)
        self.train(self.training)


def _make_mapper(settings: ClipGpt2Settings, feature_size: int, width: int) -> torch.nn.Module:
    try:
        return make_mapper(settings.mapper, feature_size=feature_size, width=width, dropout=settings.dropout)
    except ValueError as error:
        raise SettingsError(f"model: {error}.") from error
