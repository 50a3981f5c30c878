"""Fused layers give PyTorch's own results, however the layers are connected."""

from collections import Counter

import pytest
import torch

from captioning.backends import onednn
from captioning.backends.network import Network
from tests.captioning.backends.networks import ODD, Cnn, Odd, pixels

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this PyTorch has no oneDNN")


def relative_error(network: Network, run: Network, count: int) -> float:
    errors = []
    with torch.inference_mode():
        for seed in range(2):
            images = pixels(count, seed)
            before = images.clone()
            expected, found = network(images), run(images)
            assert torch.equal(images, before)
            assert [each.shape for each in found] == [each.shape for each in expected]
            assert [each.dtype for each in found] == [each.dtype for each in expected]
            errors += [float((one - two).norm() / two.norm()) for one, two in zip(found, expected, strict=True)]
    return max(errors)


def unfused(run: Network) -> Counter[str]:
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
def test_a_cnn_gives_the_same_results(name: str) -> None:
    network = Cnn(name)
    run = onednn.prepare(network, pixels(3), torch.float32)
    assert relative_error(network, run, 3) < 2e-5
    assert not unfused(run)["aten.convolution.default"]


def test_the_bundled_encoder_is_fused() -> None:
    remaining = unfused(onednn.prepare(Cnn("timm/tf_efficientnet_lite0"), pixels(2), torch.float32))
    assert not {"aten.native_batch_norm.default", "aten.hardtanh.default", "aten.add.Tensor"} & set(remaining)
    assert remaining["aten.constant_pad_nd.default"] == 1


@pytest.mark.parametrize("way", ODD)
def test_unusual_networks_give_the_same_results(way: str) -> None:
    network = Odd(way)
    assert relative_error(network, onednn.prepare(network, pixels(3), torch.float32), 3) < 1e-5


@pytest.mark.parametrize("name", ["timm/tf_efficientnet_lite0", "torchvision/resnet18"])
def test_bfloat16_is_as_exact_as_autocast(name: str) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor has no bfloat16")
    network = Cnn(name)
    run = onednn.prepare(network, pixels(2), torch.bfloat16)
    assert not unfused(run)["aten.convolution.default"]
    with torch.inference_mode():
        reference = network(pixels(2))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = network(pixels(2))
        for one, two, expected in zip(run(pixels(2)), rounded, reference, strict=True):
            assert one.dtype == two.dtype
            assert (one.float() - expected).norm() < 1.2 * (two.float() - expected).norm()


def test_a_prepared_network_takes_only_its_batch_size() -> None:
    run = onednn.prepare(Cnn("timm/test_efficientnet"), pixels(2), torch.float32)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        run(pixels(3))
