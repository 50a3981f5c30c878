"""References to published weights, and the files they resolve to."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from captioning.errors import CheckpointError
from captioning.models.hub import local_folder, read_config, read_tensors

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty and without a network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def put_in_cache(cache: Path, revision: str) -> Path:
    """A repository org/name as the hub's client caches it."""
    root = cache / "models--org--name"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, snapshot / "model.safetensors")
    (root / "refs").mkdir()
    (root / "refs" / revision).write_text(COMMIT)
    return snapshot


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert local_folder(str(tmp_path)) == tmp_path


def test_a_cached_repository_is_used_without_a_network(cache: Path) -> None:
    snapshot = put_in_cache(cache, "main")
    assert local_folder("org/name") == snapshot


def test_a_revision_can_be_given(cache: Path) -> None:
    put_in_cache(cache, "v2")
    assert local_folder("org/name@v2").name == COMMIT
    with pytest.raises(CheckpointError, match="org/name@v3"):
        local_folder("org/name@v3")


def test_without_network_and_cache_the_message_says_what_to_do(cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        local_folder("org/name@v1", key="model.clip")
    message = str(caught.value)
    assert "model.clip" in message
    assert "HF_HUB_OFFLINE" in message
    assert "hf download org/name --revision v1 --local-dir FOLDER" in message


@pytest.mark.parametrize("reference", ["./nowhere", "/nowhere/at/all", "a/b/c", "~/nowhere-at-all", ""])
def test_a_missing_folder_is_not_looked_up_on_the_hub(reference: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gpt2: the folder .* does not exist"):
        local_folder(reference, key="model.gpt2")


@pytest.mark.parametrize(
    ("text", "message"), [(None, "no config.json"), ("{", "cannot be read"), ("[]", "not hold a mapping")]
)
def test_a_folder_without_a_config_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)


TENSORS = {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.float16), "n": torch.tensor([3])}


def write(folder: Path, form: str) -> None:
    if form == "safetensors":
        save_file(TENSORS, folder / "model.safetensors")
    elif form == "bin":
        torch.save(TENSORS, folder / "pytorch_model.bin")
    else:
        names = {"a": "model-1.safetensors", "b": "model-2.safetensors", "n": "model-2.safetensors"}
        for file in set(names.values()):
            save_file({name: TENSORS[name] for name in names if names[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize("form", ["safetensors", "bin", "pieces"])
def test_tensors_are_read_in_float32_under_new_names(tmp_path: Path, form: str) -> None:
    write(tmp_path, form)
    found: dict[str, Tensor] = read_tensors(tmp_path, {"x.a", "x.b", "x.n"}, lambda name: f"x.{name}")
    assert torch.equal(found["x.a"], TENSORS["a"])
    assert found["x.b"].dtype == torch.float32
    assert found["x.n"].dtype == torch.int64


def test_only_wanted_tensors_are_read(tmp_path: Path) -> None:
    write(tmp_path, "safetensors")
    assert set(read_tensors(tmp_path, {"a"})) == {"a"}


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path, "safetensors")
    with pytest.raises(CheckpointError, match=r"lack c, d, e and 1 more"):
        read_tensors(tmp_path, {"a", "c", "d", "e", "f"})


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="contains no weights"):
        read_tensors(tmp_path, {"a"})


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, "pieces")
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-2\.safetensors"):
        read_tensors(tmp_path, {"a"})


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"not weights at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_tensors(tmp_path, {"a"})
