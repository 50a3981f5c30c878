"""Fused layers: the numbers of PyTorch's own, whatever way the layers are joined."""

from collections import Counter

import pytest
import torch

from captioning.backends import onednn
from captioning.backends.network import Network
from tests.captioning.backends.networks import ODD, Cnn, Odd, pixels

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no oneDNN")


def off(network: Network, run: Network, count: int) -> float:
    shares = []
    with torch.inference_mode():
        for seed in range(2):
            images = pixels(count, seed)
            kept = images.clone()
            wanted, found = network(images), run(images)
            assert torch.equal(images, kept)
            assert [each.shape for each in found] == [each.shape for each in wanted]
            assert [each.dtype for each in found] == [each.dtype for each in wanted]
            shares += [float((one - two).norm() / two.norm()) for one, two in zip(found, wanted, strict=True)]
    return max(shares)


def left(run: Network) -> Counter[str]:
    """Operations that are still PyTorch's."""
    return Counter(str(node.target) for node in run.graph.nodes if node.op == "call_function")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    [
        "timm/tf_efficientnet_lite0",
        "timm/test_efficientnet",
        "timm/test_resnet",
        "timm/mobilenetv3_small_050",
        "timm/test_convnext",
        "torchvision/resnet18",
        "torchvision/densenet121",
    ],
)
def test_a_cnn_gives_the_same_numbers(name: str) -> None:
    network = Cnn(name)
    run = onednn.prepare(network, pixels(3), torch.float32)
    assert off(network, run, 3) < 2e-5
    assert not left(run)["aten.convolution.default"]


def test_nothing_of_the_bundled_encoder_is_left_but_its_shapes() -> None:
    rest = left(onednn.prepare(Cnn("timm/tf_efficientnet_lite0"), pixels(2), torch.float32))
    assert not {"aten.native_batch_norm.default", "aten.hardtanh.default", "aten.add.Tensor"} & set(rest)
    assert rest["aten.constant_pad_nd.default"] == 1


@pytest.mark.parametrize("way", ODD)
def test_layers_joined_oddly_give_the_same_numbers(way: str) -> None:
    network = Odd(way)
    assert off(network, onednn.prepare(network, pixels(3), torch.float32), 3) < 1e-5


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "torchvision/resnet18"])
def test_bfloat16_is_no_less_exact_than_autocast(name: str) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    network = Cnn(name)
    run = onednn.prepare(network, pixels(2), torch.bfloat16)
    assert not left(run)["aten.convolution.default"]
    with torch.inference_mode():
        exact = network(pixels(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(pixels(2))
        for one, two, wanted in zip(run(pixels(2)), rounded, exact, strict=True):
            assert one.dtype == two.dtype
            assert (one.float() - wanted).norm() < 1.2 * (two.float() - wanted).norm()


def test_a_network_that_grows_with_the_batch_is_only_for_its_number() -> None:
    run = onednn.prepare(Cnn("timm/test_efficientnet"), pixels(2), torch.float32)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        run(pixels(3))
