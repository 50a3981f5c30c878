"""Photos that harm whoever decodes them, and the decoder that lets them.

No real decoder can be had to end, hang or eat up memory on demand. So the photos carry an order in
their JPEG comment, and a `sitecustomize` on the path of the decoding process alone teaches Pillow to
obey it: the program that is tested knows nothing of this.
"""

from pathlib import Path

from tests.jobs.archive import encode, picture

#: The effects of poisoned photos, and their error classes.
ORDERS = {
    "exit": "crash",
    "abort": "crash",
    "segfault": "crash",
    "allocate": "memory",
    "sleep": "hang",
}

_SITE = """
import sys

if "jobs.workers.decode_child" in sys.orig_argv:
    from PIL import ImageFile

    load = ImageFile.ImageFile.load

    def obey(image):
        order = image.info.get("comment")
        if order == b"poison exit":
            import os
            os._exit(0)
        if order == b"poison abort":
            import os
            os.abort()
        if order == b"poison segfault":
            import ctypes
            ctypes.string_at(0)
        if order == b"poison kill":
            import os
            os.kill(os.getpid(), 9)
        if order == b"poison allocate":
            held = []
            while True:
                held.append(bytearray(b"x" * (1 << 24)))
        if order == b"poison sleep":
            import time
            time.sleep(10_000)
        if order and order.startswith(b"pause "):
            import time
            time.sleep(float(order[6:]))
        return load(image)

    ImageFile.ImageFile.load = obey
"""


def poisoned(order: str, number: int = 0) -> bytes:
    """A valid JPEG with an instruction for its decoder."""
    return encode(picture(number), "JPEG", comment=f"poison {order}".encode())


def slow(seconds: float, number: int = 0) -> bytes:
    """A valid JPEG that decodes slowly."""
    return encode(picture(number), "JPEG", comment=f"pause {seconds}".encode())


def obedient_decoders(folder: Path) -> str:
    """A folder for PYTHONPATH that makes Pillow follow these instructions in decoding processes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    return str(folder)
