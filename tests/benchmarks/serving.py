"""`serve` under load: 64 clients, photos of mixed sizes, one in twenty files bad; compared with the bare captioner.

    python -m tests.benchmarks.serving PHOTOS [--clients 64] [--requests 1280] [--model flickr-lstm]

First the bare captioner in this process, `caption` on batches of 32 files; then a server of one replica with as many
threads; then the bare captioner again. A round without bad files is compared with the mean of the two bare ones, in
wall time and in CPU time of the captioning process, which is more reliable on a shared machine.
"""

import argparse
import io
import os
import statistics
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from queue import Empty, Queue

import psutil
import requests
from PIL import Image

from tests.jobs.served import served

_SIZES = (1.0, 1.0, 2.5, 5.0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photos", type=Path)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=1280)
    parser.add_argument("--model", default="flickr-lstm")
    given = parser.parse_args(arguments)
    files = sorted(given.photos.rglob("*.jpg"))[: given.requests]
    plain = [path.read_bytes() for path in files]
    mixed = [_bad(at) if at % 20 == 7 else _scaled(data, _SIZES[at % 4]) for at, data in enumerate(plain)]
    bare = [_bare(given.model, files)]
    with served([given.model], "--set", "threads=1") as server:
        _load(server.url, plain[:128], given.clients)
        alike = _load(server.url, plain, given.clients, "photos as they are")
        _load(server.url, mixed, given.clients, "mixed sizes, 5% bad files")
    bare.append(_bare(given.model, files))
    rate, cost = (statistics.mean(each) for each in zip(*bare, strict=True))
    print(f"bare: {rate:.1f} images/s, {1000 * cost:.1f} CPU-ms an image, of two runs: {bare}")
    print(
        f"served / bare: {alike[0] / rate:.2f} by the clock; CPU of the captioner alone an image: "
        f"{alike[1] / cost:.2f} of bare, which decodes JPEGs too"
    )
    return 0


def _bare(model: str, files: list[Path]) -> tuple[float, float]:
    import torch

    from captioning import load_captioner

    torch.set_num_threads(1)
    captioner = load_captioner(model)
    captioner.caption(files[:32])
    begin, cpu = time.perf_counter(), time.process_time()
    for start in range(0, len(files), 32):
        captioner.caption(files[start : start + 32])
    return len(files) / (time.perf_counter() - begin), (time.process_time() - cpu) / len(files)


def _load(url: str, images: list[bytes], clients: int, name: str | None = None) -> tuple[float, float]:
    """Send every image once from `clients` clients; the rate, and the captioning process's CPU-seconds per image."""
    queue: Queue[bytes] = Queue()
    for image in images:
        queue.put(image)
    taken: list[float] = []
    statuses: Counter[str] = Counter()
    sizes: list[int] = []

    def client() -> None:
        with requests.Session() as session:
            while True:
                try:
                    image = queue.get_nowait()
                except Empty:
                    return
                begin = time.perf_counter()
                answer = session.post(f"{url}/caption", data=image, headers={"Content-Type": "image/jpeg"}, timeout=120)
                taken.append(time.perf_counter() - begin)
                found = answer.json()
                statuses[str(answer.status_code) + (" " + found["error"]["class"] if "error" in found else "")] += 1
                if "timing" in found:
                    sizes.append(found["timing"]["batch_size"])

    begin, cpu = time.perf_counter(), _replica_seconds()
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, cpu = time.perf_counter() - begin, _replica_seconds() - cpu
    if name is not None:
        ranked = sorted(taken)
        at = {share: ranked[min(len(ranked) - 1, int(share * len(ranked)))] for share in (0.5, 0.95, 0.99)}
        print(
            f"{name}: {len(images)} requests from {clients} clients, {len(images) / seconds:.1f}/s, latency "
            f"{at[0.5]:.2f} s (median), {at[0.95]:.2f} s (95%), {at[0.99]:.2f} s (99%); mean batch "
            f"{statistics.mean(sizes):.1f}; {dict(statuses)}; CPU {1000 * cpu / len(images):.1f} ms an image",
            flush=True,
        )
    return len(images) / seconds, cpu / len(images)


def _replica_seconds() -> float:
    """CPU seconds of the captioner's process, a descendant of this one."""
    for process in psutil.Process(os.getpid()).children(recursive=True):
        if "jobs.serving.caption_child" in process.cmdline():
            times = process.cpu_times()
            return float(times.user + times.system)
    raise SystemExit("the captioner's process was not found")


def _scaled(data: bytes, factor: float) -> bytes:
    if factor == 1.0:
        return data
    with Image.open(io.BytesIO(data)) as photo:
        larger = photo.convert("RGB").resize((int(photo.width * factor), int(photo.height * factor)))
    file = io.BytesIO()
    larger.save(file, "JPEG", quality=88)
    return file.getvalue()


def _bad(at: int) -> bytes:
    return (b"", b"<html>not found</html>", b"\xff\xd8\xff\xe0 cut off", b"GIF89a" + bytes(20))[at // 20 % 4]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
