"""Weights published on the Hugging Face hub, by id, or in a local folder of the same layout.

A reference is `ORG/NAME`, `ORG/NAME@REVISION` or a folder with a `config.json` and weights beside it.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captioning.errors import CheckpointError

_HUB_ID = re.compile(r"^(?P<id>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[^@]+))?$")
_SMALL_FILES = ["*.json", "*.txt", "*.md", "*.model"]


def local_folder(reference: str, *, key: str = "the reference") -> Path:
    """The local folder of `reference`, downloaded into the hub's cache if needed.

    `key` names the setting that holds the reference, for messages. Raises `CheckpointError`
    when there is no such folder and the hub cannot be reached or does not have it.
    """
    folder = Path(os.path.expanduser(reference))
    if reference and folder.is_dir():
        return folder
    match = _HUB_ID.match(reference)
    if match is None or reference.startswith((".", "/", "~")):
        raise CheckpointError(
            f"{key}: the folder {reference!r} does not exist. Use a folder in the hub's layout (config.json and "
            "model.safetensors) or a hub id such as openai-community/gpt2."
        )
    return _fetch(match["id"], match["revision"], reference, key)


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of `folder`. Raises `CheckpointError`."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no config.json, so it is not a folder in the hub's layout. Copy the whole repository there."
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Fetch the file again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} does not hold a mapping. Fetch the file again.")
    return config


def read_tensors(folder: Path, wanted: Collection[str], rename: Callable[[str], str] = str) -> dict[str, Tensor]:
    """The tensors of `folder` whose names, after `rename`, are `wanted`; floats as float32.

    Reads safetensors, else PyTorch's `.bin` (tensors only, no code is run), single or sharded files.
    Raises `CheckpointError` when a wanted tensor is missing.
    """
    found: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        try:
            for name, tensor in _tensors(path, lambda name: rename(name) in wanted):
                found[rename(name)] = tensor.float() if tensor.is_floating_point() else tensor
        except Exception as error:  # safetensors and pickle have no common exception
            raise CheckpointError(f"The weights in {path} cannot be read ({error}). Fetch the file again.") from error
    missing = sorted(set(wanted) - set(found))
    if missing:
        shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise CheckpointError(f"The weights in {folder} lack {shown}: they belong to another kind of model.")
    return found


def _fetch(repo_id: str, revision: str | None, reference: str, key: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*_SMALL_FILES, "*.safetensors"]))
        if not list(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*_SMALL_FILES, "*.bin"]))
    except Exception as error:  # the client, its transport and the file system raise different exceptions
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        at = f" --revision {revision}" if revision else ""
        raise CheckpointError(
            f"{key}: {reference!r} is not a folder, and could not be downloaded from the Hugging Face hub: {reason}\n"
            "  With a network, unset HF_HUB_OFFLINE and check the id (a private one needs `hf auth login`).\n"
            f"  Without one, run `hf download {repo_id}{at} --local-dir FOLDER` on a machine that has one, copy FOLDER "
            f"here and set {key} to it."
        ) from error
    return folder


def _weight_files(folder: Path) -> list[Path]:
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise CheckpointError(f"{index} cannot be read: {error}. Fetch the file again.") from error
            absent = [piece for piece in names if not (folder / piece).is_file()]
            if absent:
                raise CheckpointError(f"{folder} lacks {absent[0]}, which its {index.name} names. Fetch it as well.")
            return [folder / piece for piece in names]
    raise CheckpointError(f"{folder} contains no weights: model.safetensors or pytorch_model.bin was expected.")


def _tensors(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a reader, not a mapping
                if wanted(name):
                    yield name, file.get_tensor(name)
    else:
        for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
            if wanted(name):
                yield name, tensor
