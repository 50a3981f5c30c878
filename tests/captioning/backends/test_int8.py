"""int8 convolutions: close to float32 where batch norms give the range, refused where they do not."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from captioning import load_captioner
from captioning.backends import int8
from captioning.backends.choice import _sample_images, choose
from captioning.backends.network import Network
from captioning.errors import SettingsError
from tests.captioning.backends.networks import SIZE, Cnn, normalised, pixels

pytestmark = pytest.mark.skipif(not int8.is_available(), reason="this PyTorch has no oneDNN")

CPU = torch.device("cpu")


@torch.no_grad()
def learn_statistics(module: nn.Module, run: Network) -> None:
    """Let batch norms learn the statistics of some images, like those of a trained network."""
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for seed in range(4):
        run(pixels(4, seed))
    module.eval()
    for norm in norms:
        norm.eval()


class Connected(nn.Module):
    """Convolutions and norms, connected in ways that give a range or do not."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.way = way
        self.first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.ReLU())
        self.alone = nn.Conv2d(32, 32, 3, stride=2, groups=32, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.narrow = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.other = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))
        self.last = nn.Conv2d(16, 8, 1)
        learn_statistics(self.eval(), self)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        result: tuple[Tensor, ...] = getattr(self, self.way)(self.first(normalised(images)))
        return result

    def chain(self, x: Tensor) -> tuple[Tensor, ...]:
        padded = functional.pad(self.wide(x), (0, 1, 0, 1))
        return (self.last(self.narrow(functional.relu6(self.norm(self.alone(padded))))),)

    def sums(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.other(x)
        y = x + self.narrow(self.wide(x))
        z = functional.relu(y + self.other(y))
        return self.last(z), z

    def pooled(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.last(functional.max_pool2d(self.narrow(self.wide(x)), 3, 2, 1)),)

    def read_otherwise(self, x: Tensor) -> tuple[Tensor, ...]:
        wide = self.wide(x)
        return self.last(self.narrow(wide)), wide.mean((2, 3)), x

    def unknown_between(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.last(functional.silu(self.other(x))), self.last(self.other(x) * 3), self.last(x + 1))

    def unlike_shapes(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.last(self.other(x) + self.other(functional.max_pool2d(x, SIZE))),)


def relative_error(network: Network, run: Network) -> float:
    errors = []
    with torch.inference_mode():
        for seed in range(2):
            for one, two in zip(run(pixels(3, seed)), network(pixels(3, seed)), strict=True):
                assert (one.shape, one.dtype) == (two.shape, two.dtype)
                errors.append(float((one - two).norm() / two.norm()))
    return max(errors)


def count_quantised(run: Network) -> int:
    return sum(isinstance(layer, int8._Convolution) for layer in run.modules())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("way", "count"),
    [
        ("chain", 5),
        ("sums", 6),
        ("pooled", 4),
        ("read_otherwise", 4),
        ("unknown_between", 3),
        ("unlike_shapes", 3),
    ],
)
def test_results_stay_close(way: str, count: int) -> None:
    network = Connected(way)
    run = int8.prepare(network, pixels(3))
    assert count_quantised(run) == count
    assert 0 < relative_error(network, run) < 0.05


@pytest.mark.parametrize(("name", "count"), [("torchvision/resnet18", 20), ("timm/test_efficientnet", 5)])
def test_a_cnn_of_random_weights_stays_close(name: str, count: int) -> None:
    network = Cnn(name)
    learn_statistics(network.encoder, network)
    run = int8.prepare(network, pixels(3))
    assert count_quantised(run) == count
    assert 0 < relative_error(network, run) < 0.2


def test_the_bundled_encoder_stays_close() -> None:
    model = load_captioner(device="cpu", encoder="eager").model
    pictures = _sample_images(224)
    run = int8.prepare(model.encoder_outputs, pictures)
    assert count_quantised(run) == 49
    with torch.inference_mode():
        for one, two in zip(run(pictures), model.encoder_outputs(pictures), strict=True):
            assert (one - two).norm() < 0.25 * two.norm()


def test_without_batch_norms_it_is_refused() -> None:
    with pytest.raises(ValueError, match="batch norms"):
        int8.prepare(Cnn("timm/test_convnext"), pixels(2))
    with pytest.raises(SettingsError, match="batch norms"):
        choose(Cnn("timm/test_convnext"), backend="auto", device=CPU, precision="int8", image_size=SIZE)


def test_int8_is_for_cpus_and_onednn() -> None:
    network = Connected("chain")
    with pytest.raises(SettingsError, match="device is cuda"):
        choose(network, backend="auto", device=torch.device("cuda"), precision="int8", image_size=SIZE)
    with pytest.raises(SettingsError, match="encoder is eager"):
        choose(network, backend="eager", device=CPU, precision="int8", image_size=SIZE)


def test_broken_statistics_are_refused() -> None:
    network = Connected("chain")
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            # Statistics of another network: all activations are out of their range.
            norm.running_var.mul_(1e-4)  # type: ignore[union-attr]
    with pytest.raises(SettingsError, match="relative error"):
        choose(network, backend="auto", device=CPU, precision="int8", image_size=SIZE)


def test_an_image_does_not_depend_on_its_batch() -> None:
    run = choose(Connected("sums"), backend="auto", device=CPU, precision="int8", image_size=SIZE).run
    with torch.inference_mode():
        together = run(pixels(6))
        alone = [run(image[None]) for image in pixels(6)]
        for each, parts in zip(together, zip(*alone, strict=True), strict=True):
            assert torch.equal(each, torch.cat(parts))


@pytest.mark.parametrize(("channels", "groups"), [(8, 1), (7, 1), (8, 4), (8, 8)])
def test_sums_of_two_products_fit_into_sixteen_bits(channels: int, groups: int) -> None:
    weight = torch.randn(64, channels // groups, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    quantised = (weight / (int8._weight_ranges(weight) / 127)[:, None, None, None]).round()
    assert quantised.abs().max() == 127 if groups == channels else quantised.abs().max() <= 127
    for sign in (1, -1):
        some = (sign * quantised).clamp(min=0)
        for first in range(0, some.shape[1] - 1, 2):
            assert (255 * (some[:, first] + some[:, first + 1])).max() <= 2**15 - 1
