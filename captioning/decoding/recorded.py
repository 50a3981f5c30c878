"""A step that is run time and again over the same memory: recorded once on a GPU (a CUDA graph), then played back.

Where rows are few, a GPU runs kernels faster than Python starts them: decoding with GPT-2 kept one busy for
46 of 160 ms. A recording starts all of a step's kernels at once. Knows nothing of what they compute.
"""

import threading
import warnings
from collections.abc import Callable

import torch

#: Runs before a recording, in which libraries choose kernels and make room for their own work.
_WARM_UPS = 2


def record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does the same as `step`, as often as it is called; `step` itself where `device` is no GPU.

    `step` reads and writes tensors that stay where they are, leaves the same when it is run twice, and looks at no
    value on its way. One that a GPU cannot record is run as it is, with a warning.
    """
    if device.type != "cuda":
        return step
    try:
        return _recorded(step, device)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"A decoding step cannot be recorded, and is run as it is: {reason}", RuntimeWarning, stacklevel=2
        )
        return step


#: A process records one graph at a time.
_one_at_a_time = threading.Lock()


def _recorded(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    with torch.cuda.device(device):
        # Beside the stream that all else runs on: there nothing may be recorded.
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU, such as to copy pixels.
        # On a stream of this device: PyTorch's own is of the device on which it recorded first.
        with _one_at_a_time, torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
            step()
        return graph.replay
