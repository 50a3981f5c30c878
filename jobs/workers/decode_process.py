"""Decodes images in a child process, so that an image which crashes its decoder costs only its own row.

    decoder = decoder_of(preprocess, settings)     kept for the life of this process
    decoder.decode(data)                           the pixels; raises `ImageError`

Otherwise Ray would retry a task whose process died without end, or abort the whole execution; either costs too
much for one image, which would have to be found by bisecting a shard. So every decoding task keeps one small
process and sends it one image at a time: if the process dies, that image is the suspect, and the task goes on.
This costs copying the image's bytes and its pixels through a pipe; see tests/benchmarks/README.md for the figures.

One death does not condemn an image, for it may have another cause: the image is decoded again, alone in a new
process. This adds the following error classes to those of `captioning.data.images`:

    crash     it ended its own process twice, alone (an exit, a crash of the decoder)
    memory    it needs more memory than decode.memory_mb
    hang      it was not decoded within decode.timeout_s, twice, the second time alone

A death by SIGKILL usually has an external cause (an operator, the out-of-memory killer, a test): it counts only
after it has happened several times to the same image alone, with growing pauses in between.
"""

import atexit
import json
import os
import threading
import time
from pathlib import Path
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt

from captioning.config import settings, to_dict
from captioning.data.preprocess import Pixels, PreprocessSettings
from captioning.errors import ImageError, UnfinishedError
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess
from jobs.workers.decode_child import DECODED_HEAD

#: Deaths of its own process, alone, that make an image a `crash`.
_MAX_CRASHES = 2
#: Deaths by SIGKILL, alone, after which an external cause is unlikely.
_MAX_KILLS = 6
_FIRST_PAUSE = 0.25
#: The most attempts to start a process.
_MAX_STARTS = 6
#: A process is replaced after this many images, which frees memory that decoders leak.
_IMAGES_PER_PROCESS = 50_000


@settings
class DecodeSettings:
    """Limits on decoding one image, which becomes an error row if it exceeds them."""

    timeout_s: Annotated[float, Gt(0)] = 60.0
    """The time limit in seconds; then the decoder is ended, and the image tried once more, alone (class `hang`)."""

    memory_mb: Annotated[int, Ge(0)] = 4096
    """MiB of memory that a decoding process may allocate after its start (class `memory`); 0 sets no limit."""


class Decoder:
    """A decoding process and its replacements. Used by one thread at a time."""

    def __init__(self, preprocess: PreprocessSettings, limits: DecodeSettings) -> None:
        self._limits = limits
        self._side = preprocess.size
        # A limit above the machine's memory would have no effect.
        memory = min(limits.memory_mb << 20, memory_bytes() // 2)
        start = {"preprocess": to_dict(preprocess), "memory_bytes": memory}
        self._start = json.dumps(start).encode()
        self._child: ChildProcess | None = None
        self._count = 0

    def decode(self, data: bytes) -> tuple[Pixels, float]:
        """The image's pixels, and the seconds that decoding took. Raises `ImageError`."""
        try:
            return self._request(data)
        except (ChildDiedError, ChildHungError) as error:
            return self._decode_alone(data, error)
        except ImageError as error:
            if error.error_class != "memory":
                raise
            # Perhaps memory that images before it left behind was the cause.
            self.close()
            return self._decode_alone(data, error)

    def close(self) -> None:
        """End the process; the next image starts another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _request(self, data: bytes) -> tuple[Pixels, float]:
        if self._child is None or self._count >= _IMAGES_PER_PROCESS:
            self.close()
            self._child, self._count = self._start_child(), 0
        self._count += 1
        try:
            answer = self._child.request([data], seconds=self._limits.timeout_s)
        except BaseException:
            self._child = None
            raise
        if len(answer) == 2:
            raise ImageError(bytes(answer[0]).decode(), bytes(answer[1]).decode())
        width, height, seconds = DECODED_HEAD.unpack(answer[0])
        pixels = np.frombuffer(answer[1], np.uint8).reshape(self._side, self._side, 3)
        return Pixels(pixels, width, height), seconds

    def _start_child(self) -> ChildProcess:
        for attempt in range(_MAX_STARTS):
            try:
                return ChildProcess("jobs.workers.decode_child", [self._start])
            except (ChildDiedError, ChildHungError, OSError) as error:
                failed: Exception = error
                time.sleep(_FIRST_PAUSE * 2**attempt)
        raise UnfinishedError(
            f"The process that decodes images could not be started: {failed}. Finished shards are kept; run the same "
            "command again once this is fixed. If memory ran out, use a smaller runtime.actors or runtime.decode_tasks."
        )

    def _decode_alone(self, data: bytes, first: Exception) -> tuple[Pixels, float]:
        """Decode an image at which a process died or hung, each time in a new process."""
        crashes = kills = 0
        hung = isinstance(first, ChildHungError)
        while True:
            try:
                return self._request(data)
            except ChildHungError as error:
                if hung:
                    raise ImageError(
                        "hang",
                        f"The image was not decoded within {self._limits.timeout_s:g} s (decode.timeout_s), in two "
                        "attempts.",
                    ) from error
                hung = True
            except ChildDiedError as error:
                crashes += not error.killed_externally
                kills += error.killed_externally
                if crashes >= _MAX_CRASHES or kills >= _MAX_KILLS:
                    raise ImageError(
                        "crash",
                        f"Decoding the image repeatedly crashed the decoder: {error}. The image may be damaged or "
                        "malicious.",
                    ) from error
                if error.killed_externally:
                    time.sleep(_FIRST_PAUSE * 2 ** (kills - 1))
            finally:
                self.close()  # the next image gets a new process


def memory_bytes() -> int:
    """The memory of this machine, or the limit of the container, in bytes."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return total


_decoders: dict[tuple[int, int, PreprocessSettings, DecodeSettings], Decoder] = {}


def decoder_of(preprocess: PreprocessSettings, limits: DecodeSettings) -> Decoder:
    """This thread's decoder for these settings, started once and kept until the process ends."""
    key = (os.getpid(), threading.get_ident(), preprocess, limits)
    if key not in _decoders:
        decoder = _decoders[key] = Decoder(preprocess, limits)
        atexit.register(decoder.close)
    return _decoders[key]
