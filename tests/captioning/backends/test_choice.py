"""The choice of a back end: never one with other results, never an error where PyTorch can run the network."""

import time

import pytest
import torch
from torch import Tensor

from captioning.backends import choice, onednn
from captioning.backends.choice import SLICE, choose
from captioning.backends.network import Network
from captioning.backends.slices import Slices
from captioning.errors import SettingsError
from tests.captioning.backends.networks import SIZE, Cnn, pixels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> Cnn:
    return Cnn("timm/test_efficientnet")


def chosen(network: Network, backend: str = "auto", device: torch.device = CPU) -> choice.Choice:
    return choose(network, backend=backend, device=device, precision="fp32", image_size=SIZE)  # type: ignore[arg-type]


def slow(images: Tensor) -> tuple[Tensor, ...]:
    begin = time.thread_time()
    while time.thread_time() - begin < 0.2:
        pass
    return (images.float().mean((1, 2)),)


def quick(images: Tensor) -> tuple[Tensor, ...]:
    return (images.float().mean((1, 2)),)


def _prepare(monkeypatch: pytest.MonkeyPatch, prepared: Network) -> None:
    monkeypatch.setitem(choice._PREPARE, "onednn", lambda network, pixels, dtype: prepared)


def test_the_fastest_with_the_same_results_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(monkeypatch, quick)
    found = chosen(slow)
    assert found.name == "onednn"
    assert found.seconds["onednn"] < found.seconds["eager"]
    assert torch.equal(found.run(pixels(5))[0], quick(pixels(5))[0])


def test_one_that_is_no_faster_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(monkeypatch, slow)
    found = chosen(quick)
    assert (found.name, found.run) == ("eager", quick)
    assert "no faster" in found.rejected["onednn"]
    assert "no faster" in str(found)


def test_a_processor_without_bf16_gives_a_warning() -> None:
    def emulated(images: Tensor) -> tuple[Tensor, ...]:
        return slow(images) if torch.is_autocast_enabled("cpu") else quick(images)

    with pytest.warns(UserWarning, match="bf16 takes .* times as long as fp32"):
        choose(emulated, backend="auto", device=CPU, precision="bf16", image_size=SIZE)


@pytest.mark.parametrize("wrong", [1.01, float("nan"), float("inf")])
def test_one_with_other_results_is_rejected(monkeypatch: pytest.MonkeyPatch, wrong: float) -> None:
    _prepare(monkeypatch, lambda images: (quick(images)[0] * wrong,))
    found = chosen(slow)
    assert found.name == "eager"
    assert "relative error" in found.rejected["onednn"]
    with pytest.raises(SettingsError, match="relative error"):
        chosen(slow, "onednn")


def test_one_with_other_shapes_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(monkeypatch, lambda images: (quick(images)[0][:, :2],))
    assert "(4, 2)" in chosen(slow).rejected["onednn"]


def test_one_that_fails_is_rejected_and_an_error_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Network:
        raise RuntimeError("no such operation\nand a long trace")

    monkeypatch.setitem(choice._PREPARE, "onednn", fail)
    assert chosen(slow).rejected == {"onednn": "RuntimeError: no such operation"}
    with pytest.raises(SettingsError, match="no such operation"):
        chosen(slow, "onednn")


def test_asked_for_by_name_it_runs_even_if_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    _prepare(monkeypatch, slow)
    assert chosen(quick, "onednn").name == "onednn"
    assert chosen(quick, "eager").run is quick


def test_gpus_are_left_to_pytorch() -> None:
    assert chosen(quick, device=torch.device("cuda")).run is quick
    with pytest.raises(SettingsError, match="is for CPUs"):
        chosen(quick, "onednn", torch.device("cuda"))


@pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no oneDNN")
def test_an_image_does_not_depend_on_its_batch(network: Cnn) -> None:
    run = chosen(network, "onednn").run
    with torch.inference_mode():
        together = run(pixels(2 * SLICE + 1))
        reversed_ = run(pixels(2 * SLICE + 1).flip(0))
        for part in zip(together, reversed_, strict=True):
            assert torch.equal(part[0], part[1].flip(0))
        alone = [run(image[None]) for image in pixels(2 * SLICE + 1)]
        for whole, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.equal(whole, torch.cat(parts))


def test_slices_are_padded() -> None:
    seen = []

    def run(images: Tensor) -> tuple[Tensor, ...]:
        seen.append(len(images))
        return images.float().mean((1, 2)), images[:, 0]

    for count in (1, 3, 4, 7):
        mean, row = Slices(run, 3)(pixels(count))
        assert torch.equal(mean, pixels(count).float().mean((1, 2)))
        assert torch.equal(row, pixels(count)[:, 0])
    assert set(seen) == {3}


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_results(network: Cnn) -> None:
    found = chosen(network, "compile")
    assert found.name == "compile"
    with torch.inference_mode():
        for one, two in zip(found.run(pixels(5)), network(pixels(5)), strict=True):
            assert (one - two).norm() < 1e-5 * two.norm()
