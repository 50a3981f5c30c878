"""CUDA graphs: a step that runs repeatedly over the same memory is captured once on a GPU and then replayed.

With few rows a GPU finishes kernels faster than Python launches them: decoding with GPT-2 kept one busy for
46 of 160 ms. A replay launches all kernels of a step at once.
"""

import threading
import warnings
from collections.abc import Callable

import torch

#: Runs before a capture, in which libraries choose kernels and allocate workspaces.
_WARM_UPS = 2


def capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """A function that replays `step`; `step` itself where `device` is no GPU.

    `step` reads and writes tensors at fixed addresses, is idempotent, and never reads a tensor's values on the
    host. A step that cannot be captured runs eagerly, with a warning.
    """
    if device.type != "cuda":
        return step
    try:
        return _capture(step, device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        message = f"A decoding step cannot be captured as a CUDA graph and runs eagerly: {reason}"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return step


#: A process captures one graph at a time.
_capture_lock = threading.Lock()


def _capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with torch.cuda.device(device):
        # The default stream cannot be captured.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: other threads may use the GPU meanwhile, for instance to copy pixels.
        # The stream is explicit since PyTorch's default capture stream belongs to the device of its first capture.
        with _capture_lock, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
        return graph.replay
