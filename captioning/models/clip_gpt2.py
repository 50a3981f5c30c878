"""CLIP-GPT2: CLIP's image features, mapped to a prefix that GPT-2 continues as the caption.

ClipCap (Mokady et al. 2021). `towers` and `cnn_tower` make the two networks, `mapper` what joins them.
Shapes: B images, N captions, T tokens, M input tokens, K targets, P prefix, D width of CLIP, L patches or
grid cells, E width of GPT-2, V vocabulary.
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
from captioning.decoding.lm_head import LMHead
from captioning.decoding.stepper import Stepper
from captioning.errors import CheckpointError, SettingsError
from captioning.models.base import PAD_TARGET, CaptionModel, TeacherForced, Vocabulary
from captioning.models.clip_gpt2_checks import check_fit, check_normalisation, resolved
from captioning.models.clip_gpt2_settings import TRAINED, ClipGpt2Settings
from captioning.models.cnn_tower import CnnImageTower
from captioning.models.encoder_settings import EncoderSettings, EncoderShare
from captioning.models.gpt2_cuda_graphs import CudaGraphGpt2Stepper, WorkspacePool
from captioning.models.gpt2_stepper import Gpt2Stepper
from captioning.models.gpt2_weights import Gpt2Weights
from captioning.models.lora import add_adapters, is_adapter, merged, scale_of
from captioning.models.mapper import make_mapper
from captioning.models.mapper_weights import load_mapper
from captioning.models.packing import GROUPS, Packing, pack
from captioning.models.pixels import Normalise
from captioning.models.prepared import prepared
from captioning.models.state_dicts import converted, keep_tied
from captioning.models.state_digest import state_digest
from captioning.models.tower_settings import ClipTower, CnnTower, Gpt2Tower
from captioning.models.towers import grow_gpt2, load_clip, load_gpt2, make_clip, make_gpt2


@dataclasses.dataclass(frozen=True)
class MappedFeatures:
    """Features after the mapper: the prefix (B, P, E)."""

    prefix: Tensor


class ClipGpt2(CaptionModel):
    """CLIP's image tower, a mapper, and GPT-2.

    Features are CLIP's image embeddings (B, D), or its states (B, L, D) for a mapper that reads
    patches. The last embedding of the prefix (or of the prompt) predicts the first token, so BOS
    is never an input. Frozen parts have no gradients and stay in evaluation mode.
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
        self._trained = TRAINED[settings.train]
        self._cuda_graphs = False
        check_fit(clip, gpt2, self._prefix_length, vocabulary, preprocess)

        self.normalise = Normalise(preprocess.mean, preprocess.std)
        self.clip: Any = CnnImageTower(clip, pretrained=pretrained) if isinstance(clip, CnnTower) else make_clip(clip)
        #: Length of the embeddings of `embed_images`.
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
        tower = ("clip.encoder.stem", "clip.encoder.rest") if isinstance(clip, CnnTower) else ("clip.forward",)
        self.compilable = (*tower, "mapper.forward", "_transformer")
        self._set_prefixes(settings, pretrained)
        self._freeze()
        if gpt2.tie_word_embeddings:
            keep_tied(self)

    def stem(self, pixels: Tensor) -> Tensor:
        """Pixels (B, S, S, 3) uint8 to the mapper's input, (B, D) or (B, L, D), where CLIP is frozen.

        Where it is trained, to the feature map (B, C, h, w) where a CNN's frozen part ends, or the pixels themselves.
        """
        if "clip" not in self._trained:
            with torch.no_grad():
                return self._mapper_input(self.clip(pixel_values=self.normalise(pixels)))
        return self.clip.stem(self.normalise(pixels)) if self._has_cnn_stem else pixels

    def encode_stem(self, stem: Tensor) -> Tensor:
        """The mapper's input, (B, D) or (B, L, D), from the output of `stem`, cached as float16 or not."""
        if "clip" not in self._trained:
            return stem.to(self._dtype)
        return self._mapper_input(self._clip_outputs(stem))

    def stem_identity(self) -> str | None:
        """SHA-256 of the frozen part of CLIP; None where all of it is trained."""
        if "clip" in self._trained:
            return self.clip.encoder.stem_identity() if self._has_cnn_stem else None
        tower = self.settings.clip
        about = tower.encoder.name if isinstance(tower, CnnTower) else to_dict(tower)
        return state_digest(json.dumps([about, self.settings.mapper.source]), self.clip.state_dict())

    def encoder_outputs(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Pixels (B, S, S, 3) uint8 to the mapper's prefix (B, P, E)."""
        return (self.mapper(self.encode(pixels)),)

    def features(self, outputs: tuple[Tensor, ...]) -> MappedFeatures:
        """The result of `encoder_outputs`, in a type that marks it as mapped."""
        return MappedFeatures(*outputs)

    def embed_images(self, stem: Tensor) -> Tensor:
        """CLIP's image embeddings (B, D) from the output of `stem`."""
        if "clip" in self._trained:
            embedding: Tensor = self._clip_outputs(stem).image_embeds
        elif not self._reads_patches:
            embedding = stem.to(self._dtype)
        elif isinstance(self.clip, CnnImageTower):
            embedding = self.clip.embed(stem.to(self._dtype))
        else:
            class_state = stem[:, 0].to(self._dtype)
            embedding = self.clip.visual_projection(self.clip.vision_model.post_layernorm(class_state))
        return embedding

    def forward(
        self,
        features: Tensor,
        captions: Tensor,
        images: Tensor,
        context: Tensor | None = None,
        *,
        prompt: Sequence[int] | None = None,
    ) -> TeacherForced:
        """Score `captions` (N, T) of the `images` (N,) by teacher forcing; `context` (N, T) replaces them as input.

        With a `prompt` every caption is scored as its continuation: the prompt is input, and no
        target. Logits are (K, V) for the K targets.
        """
        return self._score(self.prefix(features, prompt or []), images.tolist(), captions, context, first_position=0)

    def forward_text(self, captions: Tensor) -> TeacherForced:
        """Score `captions` (N, T) by GPT-2 alone. The end token takes the prefix's last position, and begins them."""
        start = self._embed(captions.new_full((len(captions), 1), self._eos_id))
        return self._score(start, range(len(captions)), captions, None, first_position=self._prefix_length - 1)

    def enable_cuda_graphs(self) -> None:
        """See `CaptionModel`."""
        self._cuda_graphs = True

    def stepper(self, features: Tensor | MappedFeatures, prompt: list[int] | None = None) -> Stepper:
        """A `Stepper` over the images of `features`, whose captions continue `prompt`."""
        block = self.gpt2.transformer.h[0]
        assert not (block.training and block.gradient_checkpointing), "decoding needs evaluation mode"
        pool, lm_head = prepared(self.gpt2, self._prepare)
        prefix = self.prefix(features, prompt or [])
        if self._cuda_graphs:
            return CudaGraphGpt2Stepper(pool, lm_head, prefix, check_length=self._check_length)
        return Gpt2Stepper(pool.weights, lm_head, prefix, check_length=self._check_length)

    def _prepare(self, dtype: torch.dtype) -> tuple[WorkspacePool, LMHead]:
        # Some published vocabularies are padded beyond the tokenizer's.
        lm_head = LMHead(self.gpt2.lm_head.weight[: self.vocab_size].to(dtype))
        return WorkspacePool(Gpt2Weights(self.gpt2, dtype)), lm_head

    def max_positions(self) -> int | None:
        """Positions that the prefix leaves for prompt and caption."""
        return self._n_positions - self._prefix_length

    def prefix(self, features: Tensor | MappedFeatures, prompt: Sequence[int] = ()) -> Tensor:
        """GPT-2's input before the caption: the mapped features and the prompt, (B, P + prompt, E)."""
        mapped: Tensor = features.prefix if isinstance(features, MappedFeatures) else self.mapper(features)
        if not prompt:
            return mapped
        embeddings = self._embed(torch.tensor(list(prompt), device=mapped.device)).to(mapped.dtype)
        return torch.cat([mapped, embeddings.expand(len(mapped), -1, -1)], dim=1)

    def train(self, mode: bool = True) -> "ClipGpt2":
        """Set training mode for the trained parts; frozen ones stay in evaluation mode."""
        super().train(mode)
        for name in {"clip", "mapper", "gpt2"} - self._trained:
            self.get_submodule(name).eval()
        if self.settings.gradient_checkpointing:
            # Frozen blocks too: the mapper's gradient passes through them. Their dropout stays off.
            for block in self.gpt2.transformer.h:
                block.training = mode
        return self

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Load the weights of the same captioner with or without adapters. Raises `RuntimeError` for another's."""
        self.load_state_dict(converted(state, self.state_dict()))

    def encoder_tuning(self, share: EncoderShare) -> dict[str, Any]:
        """Changes to the settings that train this share of CLIP; a transformer is trained as a whole."""
        if share == "frozen":
            return {"train": "decoder"}
        if not isinstance(self.clip, CnnImageTower):
            return {"train": "all"}
        part = "all" if share == "all" else self.clip.encoder.late_part()
        return {"train": "all", "clip": {"encoder": EncoderSettings.tuning(part)}}

    def grow_vocabulary(self, size: int) -> None:
        """Extend the vocabulary to `size` tokens; new ones start as the mean of the others."""
        rows = grow_gpt2(self.gpt2, self.vocab_size, size)
        gpt2 = dataclasses.replace(self.settings.gpt2, vocab_size=rows)
        self.settings = dataclasses.replace(self.settings, gpt2=gpt2)
        self.vocab_size = size

    @property
    def checkpoint_settings(self) -> ClipGpt2Settings:
        """The settings without what only training needs."""
        settings: ClipGpt2Settings = dataclasses.replace(self.settings, lora=None, gradient_checkpointing=False)
        return settings

    def checkpoint_state(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The state with adapters merged into the weights."""
        return merged(state)

    def _score(
        self,
        heads: Tensor,
        head_of: Sequence[int],
        captions: Tensor,
        context: Tensor | None,
        *,
        first_position: int,
    ) -> TeacherForced:
        """Score captions; caption n follows head number `head_of[n]` of `heads` (B, P, E) at `first_position`."""
        targets = captions != PAD_TARGET
        lengths = targets.sum(1).tolist()
        self._check_length(first_position + heads.shape[1] + max(lengths, default=1) - 1)
        packing = pack(
            lengths,
            head_of,
            num_heads=len(heads),
            head_length=heads.shape[1],
            first_position=first_position,
            groups=1 if self.lockstep else GROUPS,
            device=heads.device,
        )
        # The one place where inputs are shifted against targets: a token is input if another target follows it.
        embeddings = self._embed((captions if context is None else context)[:, :-1][targets[:, 1:]])
        return TeacherForced(self._logits(self._states(heads, embeddings, packing)))

    def _states(self, heads: Tensor, embeddings: Tensor, packing: Packing) -> Tensor:
        """GPT-2's states (K, E) that predict the targets, for heads (B, P, E) and caption tokens (M, E)."""
        embeddings = torch.cat([heads.flatten(0, 1), embeddings.to(heads.dtype)])
        states = [
            self._transformer(functional.embedding(group.source, embeddings), group.positions, group.mask(heads.dtype))
            for group in packing.groups
        ]
        return torch.cat(states)[packing.target_places]

    def _transformer(self, inputs: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """GPT-2's states (R · S, E) of R rows of S places."""
        out = self.gpt2.transformer(
            inputs_embeds=inputs, position_ids=positions, attention_mask=mask, use_cache=False
        ).last_hidden_state
        states: Tensor = out.flatten(0, 1)
        return states

    def _clip_outputs(self, stem: Tensor) -> Any:
        """The outputs of a CLIP that is trained, from the output of `stem`."""
        return self.clip.rest(stem) if self._has_cnn_stem else self.clip(pixel_values=self.normalise(stem))

    def _mapper_input(self, outputs: Any) -> Tensor:
        features: Tensor = outputs.last_hidden_state if self._reads_patches else outputs.image_embeds
        return features

    @property
    def _has_cnn_stem(self) -> bool:
        return isinstance(self.clip, CnnImageTower) and self.clip.has_stem

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.mapper.parameters()).dtype

    def _embed(self, tokens: Tensor) -> Tensor:
        embeddings: Tensor = self.gpt2.transformer.wte(tokens)
        return embeddings

    def _logits(self, states: Tensor) -> Tensor:
        # Some published vocabularies are padded beyond the tokenizer's.
        logits: Tensor = self.gpt2.lm_head(states)[..., : self.vocab_size].float()
        return logits

    def _check_length(self, positions: int) -> None:
        if positions > self._n_positions:
            raise SettingsError(
                f"GPT-2 has {self._n_positions} positions, of which the prefix takes {self._prefix_length}: prompt "
                f"and caption may have {self._n_positions - self._prefix_length} tokens together. Lower "
                "decoding.max_new_tokens, or max_tokens in training."
            )

    def _set_prefixes(self, settings: ClipGpt2Settings, pretrained: bool) -> None:
        """Name the parts whose weights are not random: they come from a reference, or will from a checkpoint."""
        cnn = settings.clip.encoder if isinstance(settings.clip, CnnTower) else None
        self.encoder_prefixes = ("clip.",) if cnn is None else ("clip.encoder.",)
        has_weights = not pretrained or (isinstance(settings.clip, str) if cnn is None else cnn.weights != "random")
        prefixes = self.encoder_prefixes if has_weights else ()
        # Where GPT-2 has adapters only they are trained, and they are new.
        if settings.lora is None and (not pretrained or isinstance(settings.gpt2, str)):
            prefixes = (*prefixes, "gpt2.")
        self.pretrained_prefixes = prefixes

    def _freeze(self) -> None:
        for name in {"clip", "mapper", "gpt2"} - self._trained:
            self.get_submodule(name).requires_grad_(False)
        if self.settings.lora is not None:
            for name, parameter in self.gpt2.named_parameters():
                parameter.requires_grad_(is_adapter(name))
        if self._reads_patches and self.settings.train != "clip":
            # Captions are made from patches without the projection, so no gradient would reach it.
            self.clip.visual_projection.requires_grad_(False)
            if isinstance(self.settings.clip, ClipTower):
                self.clip.vision_model.post_layernorm.requires_grad_(False)
        self.train(self.training)


def _make_mapper(settings: ClipGpt2Settings, feature_size: int, width: int) -> torch.nn.Module:
    try:
        return make_mapper(settings.mapper, feature_size=feature_size, width=width, dropout=settings.dropout)
    except ValueError as error:
        raise SettingsError(f"model: {error}.") from error
