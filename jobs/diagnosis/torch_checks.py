"""Checks of PyTorch and the captioner, in a process of their own: `python -m jobs.diagnosis.torch_checks`.

They find mismatched versions of torch and torchvision, a GPU that cannot compute, and a checkpoint that does not load.
"""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from jobs.diagnosis.all_checks import Finding
from jobs.diagnosis.check_process import start_reporting

_SIDE = 320


def main() -> int:
    """Run the checks in order, skipping those that need something broken."""
    given, report = start_reporting()
    if not _torch(report):
        return 0
    _torchvision(report)
    _cuda(report)
    _captioner(given, report)
    return 0


def _torch(report: Callable[[Finding], None]) -> bool:
    began = time.monotonic()
    try:
        import torch
    except Exception as error:
        text = f"PyTorch cannot be imported: {type(error).__name__}: {error}"
        report(
            Finding(
                "torch",
                "fail",
                text,
                "Reinstall it: pip install --force-reinstall -c constraints.txt torch torchvision",
            )
        )
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPUs"
    text = f"{torch.__version__}, built for {built}; this CPU: {capability}, {torch.get_num_threads()} threads"
    report(Finding("torch", "ok", f"{text} ({time.monotonic() - began:.1f} s to import)"))
    return True


def _torchvision(report: Callable[[Finding], None]) -> None:
    import torch

    try:
        import torchvision
        from torchvision.ops import nms

        # Its operators are available only if it was built for this torch.
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except Exception as error:
        report(
            Finding(
                "torchvision",
                "fail",
                f"torchvision does not match torch {torch.__version__}: {type(error).__name__}: {error}",
                "Reinstall both together: pip install --force-reinstall -c constraints.txt torch torchvision",
            )
        )
        return
    report(Finding("torchvision", "ok", f"{torchvision.__version__}, matches torch"))


def _cuda(report: Callable[[Finding], None]) -> None:
    import torch

    from jobs.gpus import GpuDriverError, read_gpus

    try:
        there = bool(read_gpus())
    except (GpuDriverError, ValueError):
        there = True
    if not torch.cuda.is_available():
        # `machine_checks` reports GPUs that are hidden.
        if there and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
            todo = (
                "Install a torch built for your driver's CUDA version (see pytorch.org), or caption on CPUs: "
                "--set runtime.device=cpu"
            )
            report(Finding("cuda", "fail", "There is a GPU, but PyTorch cannot use it", todo))
        return
    gpus = []
    for number in range(torch.cuda.device_count()):
        try:
            device = torch.device("cuda", number)
            square = torch.ones(64, 64, device=device)
            right = float((square @ square).sum()) == 64.0**3
            free, whole = torch.cuda.mem_get_info(device)
        except Exception as error:
            todo = "Check with nvidia-smi what else uses it, or exclude it with CUDA_VISIBLE_DEVICES."
            report(Finding("cuda", "fail", f"GPU {number} fails to compute: {error}", todo))
            return
        if not right:
            report(
                Finding("cuda", "fail", f"GPU {number} computes wrong results", "Exclude it with CUDA_VISIBLE_DEVICES.")
            )
            return
        gpus.append(f"GPU {number}: {free / 2**30:.1f} of {whole / 2**30:.1f} GiB free")
    report(
        Finding(
            "cuda", "ok", f"PyTorch computes on {len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({'; '.join(gpus[:8])})"
        )
    )


def _captioner(given: dict[str, Any], report: Callable[[Finding], None]) -> None:
    from captioning.config import build
    from captioning.errors import CaptioningError
    from jobs.diagnosis.settings import DoctorSettings

    storage = build(DoctorSettings, given["settings"]).storage
    began = time.monotonic()
    try:
        from captioning.captioner import load_captioner

        captioner = load_captioner(given["model"], storage=storage)
        loaded = time.monotonic()
        [caption] = captioner.caption([sample_picture()])
    except Exception as error:
        text = str(error) if isinstance(error, CaptioningError) else f"{type(error).__name__}: {error}"
        todo = "Pass another REF with --model; without it the bundled captioner is used." if given["model"] else ""
        report(Finding("captioner", "fail", f"{given['model'] or 'The bundled captioner'}: {text}", todo))
        return
    now = time.monotonic()
    report(
        Finding(
            "captioner",
            "ok" if caption.text else "warn",
            f"{captioner.name} loads in {loaded - began:.1f} s, and captions a test picture in {now - loaded:.2f} s: "
            f"“{caption.text}”",
        )
    )


def sample_picture() -> Any:
    """A generated test picture: sky, grass and a red ball."""
    from PIL import Image, ImageDraw

    picture = Image.new("RGB", (_SIDE, _SIDE), (120, 180, 235))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, _SIDE * 0.62, _SIDE, _SIDE), fill=(70, 140, 60))
    draw.ellipse((_SIDE * 0.34, _SIDE * 0.42, _SIDE * 0.66, _SIDE * 0.74), fill=(205, 40, 35))
    return picture


if __name__ == "__main__":
    sys.exit(main())
