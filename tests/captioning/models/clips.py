"""Small CLIP-GPT2s with random weights, pixels and captions for them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captioning.config import build
from captioning.data.preprocess import PreprocessSettings
from captioning.models.base import PAD_TARGET, Vocabulary
from captioning.models.clip_gpt2 import ClipGpt2
from captioning.models.clip_gpt2_checks import CLIP_MEAN, CLIP_STD
from captioning.models.clip_gpt2_settings import ClipGpt2Settings

VOCABULARY = Vocabulary(size=30, bos_id=29, eos_id=29)
PIXELS = PreprocessSettings(size=16, mean=CLIP_MEAN, std=CLIP_STD)
CLIP = {"hidden_size": 16, "projection_dim": 12, "layers": 2, "heads": 2, "image_size": 16, "patch_size": 8}
#: A CNN in CLIP's place; its parts are named by timm.
CNN = {
    "encoder": {"name": "timm/test_efficientnet", "weights": "random", "tune_from": "blocks.2"},
    "projection_dim": 12,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 24}
MAPPERS = {
    "mlp": {"kind": "mlp", "prefix_length": 4},
    "transformer": {"kind": "transformer", "prefix_length": 4, "layers": 2, "heads": 2},
    "patches": {"kind": "transformer", "source": "patches", "prefix_length": 4, "layers": 2, "heads": 2},
}


def tiny(mapper_name: str = "mlp", **changes: Any) -> ClipGpt2Settings:
    values = {"clip": CLIP, "gpt2": GPT2, "mapper": MAPPERS[mapper_name], "dropout": 0.0, **changes}
    return build(ClipGpt2Settings, values)


def make(settings: ClipGpt2Settings, vocabulary: Vocabulary = VOCABULARY, *, seed: int = 0) -> ClipGpt2:
    torch.manual_seed(seed)
    return ClipGpt2(settings, vocabulary, PIXELS, pretrained=True).eval()


def sharpened(model: ClipGpt2, factor: float = 6.0) -> ClipGpt2:
    """Scale the weights so that captions differ between images and no two tokens nearly tie."""
    with torch.no_grad():
        for parameter in [*model.gpt2.parameters(), *model.mapper.parameters()]:
            if parameter.ndim > 1:
                parameter *= factor
    return model


def photos(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 16, 16, 3), dtype=torch.uint8, generator=generator)


def padded(captions: Sequence[Sequence[int]]) -> Tensor:
    width = max(map(len, captions))
    return torch.tensor([[*caption, *[PAD_TARGET] * (width - len(caption))] for caption in captions])


CAPTIONS = padded([[5, 6, 7, 29], [8, 29], [0, 1, 2, 3, 4, 29], [29]])
IMAGES = torch.tensor([1, 0, 1, 2])
