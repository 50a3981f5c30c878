"""Loading a captioner does not import PyTorch's compiler, which is imported when something compiles."""

import subprocess
import sys

import pytest

LOAD = """
import sys
import numpy as np
from captioning import load_captioner
captioner = load_captioner({name!r}, device="cpu")
side = captioner.preprocess.settings.size
pixels = np.zeros((2, side, side, 3), np.uint8)
assert captioner.caption_pixels(pixels, batch_size=2)
assert "torch._dynamo" not in sys.modules
"""

LATER = """
import sys
import torch
from captioning.models.lazy_compiler import without_compiler
with without_compiler():
    import timm
    assert "torchvision" in sys.modules
assert "torch._dynamo" not in sys.modules
model = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
pixels = torch.rand(1, 3, 64, 64)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, backend="eager")(pixels), model(pixels))
import torch._dynamo.utils
from torchvision.ops import roi_align
assert sys.modules["torch._dynamo"].__file__
assert roi_align(torch.rand(1, 1, 8, 8), [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2).shape == (1, 1, 2, 2)
"""

MORE = """
import sys
from captioning.models.lazy_compiler import without_compiler
with without_compiler():
    from torch._dynamo import disable
    assert not hasattr(sys.modules["torch._dynamo"], "__file__")
    from torch._dynamo import is_compiling
    assert sys.modules["torch._dynamo"].__file__
assert is_compiling() is False
with without_compiler():
    assert sys.modules["torch._dynamo"].__file__
"""


@pytest.mark.parametrize(
    "script",
    [LOAD.format(name="flickr-lstm"), LOAD.format(name="flickr-clip-gpt2"), LATER, MORE],
    ids=["lstm", "gpt2", "compiled later", "asked for more"],
)
def test_the_compiler_is_imported_when_it_is_needed(script: str) -> None:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
