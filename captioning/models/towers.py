"""The two towers of CLIP-GPT2: CLIP's vision transformer and GPT-2, by sizes or by reference.

A tower is described by its sizes (then its weights are random) or by a reference, a hub id or a
folder (`captioning.models.hub`), which gives its sizes and weights. Weights are always float32
here, whatever they were saved in. `transformers` takes seconds to import, so functions import it
when they need it.
"""

import dataclasses
from typing import Any, TypeVar

import torch
from torch import nn

from captioning.config import build
from captioning.errors import CheckpointError, SettingsError
from captioning.models.hub import local_folder, read_config, read_tensors
from captioning.models.lazy_compiler import without_compiler
from captioning.models.tower_settings import ClipTower, Gpt2Tower

T = TypeVar("T")


def clip_sizes(reference: str) -> ClipTower:
    """The sizes of the CLIP at `reference`. Raises `CheckpointError`."""
    from transformers import CLIPVisionConfig

    folder = local_folder(reference, key="model.clip")
    config = read_config(folder)
    kind = config.get("model_type")
    if kind == "clip":
        # What the published configuration leaves out is the default of its class. The projection's size may be
        # given only for the whole CLIP (LAION's).
        whole = config.get("projection_dim")
        config = CLIPVisionConfig.from_pretrained(folder).to_dict()
        config["projection_dim"] = whole or config["projection_dim"]
    elif kind == "clip_vision_model":
        config = CLIPVisionConfig(**config).to_dict()
    else:
        raise CheckpointError(
            f"model.clip: {reference!r} is a model of type {kind!r}, not CLIP's vision transformer. "
            "Use one such as openai/clip-vit-base-patch32."
        )
    names = {"layers": "num_hidden_layers", "heads": "num_attention_heads"}
    return _sizes(ClipTower, config, names, f"the configuration of {reference}")


def gpt2_sizes(reference: str) -> Gpt2Tower:
    """The sizes of the GPT-2 at `reference`. Raises `CheckpointError`."""
    from transformers import GPT2Config

    folder = local_folder(reference, key="model.gpt2")
    config = read_config(folder)
    if config.get("model_type") != "gpt2":
        raise CheckpointError(
            f"model.gpt2: {reference!r} is a model of type {config.get('model_type')!r}, not gpt2. "
            "Use one such as openai-community/gpt2."
        )
    return _sizes(Gpt2Tower, GPT2Config(**config).to_dict(), {}, f"the configuration of {reference}")


def make_clip(sizes: ClipTower) -> Any:
    """`CLIPVisionModelWithProjection` of these sizes with random float32 weights."""
    with without_compiler():
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return _make(
        CLIPVisionModelWithProjection,
        CLIPVisionConfig(
            hidden_size=sizes.hidden_size,
            intermediate_size=sizes.intermediate_size or 4 * sizes.hidden_size,
            projection_dim=sizes.projection_dim,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            image_size=sizes.image_size,
            patch_size=sizes.patch_size,
            hidden_act=sizes.hidden_act,
            layer_norm_eps=sizes.layer_norm_eps,
        ),
        "model.clip",
    )


def make_gpt2(sizes: Gpt2Tower, *, dropout: float) -> Any:
    """`GPT2LMHeadModel` of these sizes with random float32 weights; `vocab_size` must be set."""
    with without_compiler():
        from transformers import GPT2Config, GPT2LMHeadModel

    assert sizes.vocab_size is not None
    return _make(
        GPT2LMHeadModel,
        GPT2Config(
            n_embd=sizes.n_embd,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            n_positions=sizes.n_positions,
            vocab_size=sizes.vocab_size,
            n_inner=sizes.n_inner,
            activation_function=sizes.activation_function,
            layer_norm_epsilon=sizes.layer_norm_epsilon,
            scale_attn_weights=sizes.scale_attn_weights,
            scale_attn_by_inverse_layer_idx=sizes.scale_attn_by_inverse_layer_idx,
            tie_word_embeddings=sizes.tie_word_embeddings,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            bos_token_id=None,
            eos_token_id=None,
        ),
        "model.gpt2",
    )


def load_clip(clip: Any, reference: str) -> None:
    """Fill `clip` with the weights at `reference`: a whole CLIP, or its vision half. Raises `CheckpointError`."""
    _load(clip, reference, "model.clip", str, set(clip.state_dict()))


def load_gpt2(gpt2: Any, reference: str) -> None:
    """Fill `gpt2` with the weights at `reference`, with or without a head. Raises `CheckpointError`."""
    wanted = set(gpt2.state_dict())
    if gpt2.config.tie_word_embeddings:
        wanted.remove("lm_head.weight")
    _load(gpt2, reference, "model.gpt2", _gpt2_name, wanted)


@torch.no_grad()
def grow_gpt2(gpt2: Any, tokens: int, size: int) -> int:
    """Extend `tokens` used rows of the vocabulary to `size`, new ones being their mean. Returns all its rows."""
    for layer in (gpt2.transformer.wte, gpt2.lm_head):
        weight = layer.weight
        new = weight[:tokens].mean(0, keepdim=True).expand(size - tokens, -1)
        layer.weight = nn.Parameter(torch.cat([weight[:tokens], new, weight[size:]]), weight.requires_grad)
    if gpt2.config.tie_word_embeddings:
        gpt2.lm_head.weight = gpt2.transformer.wte.weight
    rows = len(gpt2.transformer.wte.weight)
    gpt2.config.vocab_size = gpt2.transformer.wte.num_embeddings = gpt2.lm_head.out_features = rows
    return rows


def _gpt2_name(name: str) -> str:
    """The name in `GPT2LMHeadModel` of a tensor that OpenAI's files name without `transformer.`."""
    return name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}"


def _load(model: nn.Module, reference: str, key: str, rename: Any, wanted: set[str]) -> None:
    folder = local_folder(reference, key=key)
    tensors = read_tensors(folder, wanted, rename)
    own = model.state_dict()
    for name, tensor in tensors.items():
        if own[name].shape != tensor.shape:
            raise CheckpointError(
                f"{key}: {name} in {folder} has shape {tuple(tensor.shape)}, but its config.json asks for "
                f"{tuple(own[name].shape)}. The two files do not belong together."
            )
    model.load_state_dict(tensors, strict=False)


def _make(model_class: Any, config: Any, key: str) -> Any:
    try:
        model = model_class(config)
    except (KeyError, ValueError) as error:
        raise SettingsError(f"{key}: these sizes are not possible: {error}") from error
    return model.to(torch.float32)


def _sizes(tower: type[T], config: dict[str, Any], names: dict[str, str], where: str) -> T:
    fields = [field.name for field in dataclasses.fields(tower)]  # type: ignore[arg-type]
    values = {field: config[names.get(field, field)] for field in fields if names.get(field, field) in config}
    try:
        return build(tower, values, where=where)
    except SettingsError as error:
        raise CheckpointError(str(error)) from error
