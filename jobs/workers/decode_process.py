"""Decodes images in a process that may die, so that no image takes a task, a shard or the run with it.

    decoder = decoder_of(preprocess, settings)     kept for the life of this process
    decoder.decode(data)                           pixels, or an `ImageError` with the reason

Why this way: Ray tries a task whose process died again without end, or aborts the whole execution;
either is too dear for one image, and which image it was would have to be found by halving a shard.
So every decoding task keeps one small process and gives it one image at a time over a pipe: the
image under way when it ends is the one suspected, and the task goes on. It costs two copies of the
image's bytes and pixels through a pipe; the figures are in tests/benchmarks/README.md.

An image is not judged by one death, which anybody may have caused. It is decoded again alone, in a
process made for it. The error classes that this adds to those of `captioning.data.images` are

    crash     it ended its own process twice, alone (an exit, a crash of the decoder)
    memory    it needs more memory than decode.memory_mb
    hang      it was not decoded within decode.timeout_s, nor again alone

A death by SIGKILL is as a rule somebody else's doing (an operator, a node's memory guard, a test):
it counts for nothing until it has met one image alone again and again, with growing pauses, while
other images come through between.
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
_CRASHES = 2
#: Deaths by SIGKILL, alone, after which nobody else can be thought to be at fault.
_KILLS = 6
_FIRST_PAUSE = 0.25
#: How often a process is started before it is no process's fault.
_STARTS = 6
#: A process is made new after so many images: what a decoder leaks is given back.
_IMAGES_A_PROCESS = 50_000


@settings
class DecodeSettings:
    """What one image may take in being decoded. More is an error row, whatever the image."""

    timeout_s: Annotated[float, Gt(0)] = 60.0
    """Seconds; a decoder that is still at it then is ended, and the image tried once more, alone (class `hang`)."""

    memory_mb: Annotated[int, Ge(0)] = 4096
    """MiB that a decoding process may have beyond what it starts with (class `memory`); 0 sets no bound."""


class Decoder:
    """A decoding process and its replacements. Used by one thread at a time."""

    def __init__(self, preprocess: PreprocessSettings, limits: DecodeSettings) -> None:
        self._limits = limits
        self._side = preprocess.size
        # A bound beyond what the machine has would protect nobody.
        memory = min(limits.memory_mb << 20, memory_bytes() // 2)
        start = {"preprocess": to_dict(preprocess), "memory_bytes": memory}
        self._start = json.dumps(start).encode()
        self._child: ChildProcess | None = None
        self._count = 0

    def decode(self, data: bytes) -> tuple[Pixels, float]:
        """The image's pixels, and the seconds that it took. Raises `ImageError`."""
        try:
            return self._ask(data)
        except (ChildDiedError, ChildHungError) as error:
            return self._alone(data, error)
        except ImageError as error:
            if error.error_class != "memory":
                raise
            # Perhaps what images before it left behind was too much.
            self.close()
            return self._alone(data, error)

    def close(self) -> None:
        """End the process; the next image makes another."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ask(self, data: bytes) -> tuple[Pixels, float]:
        if self._child is None or self._count >= _IMAGES_A_PROCESS:
            self.close()
            self._child, self._count = self._make(), 0
        self._count += 1
        try:
            answer = self._child.ask([data], seconds=self._limits.timeout_s)
        except BaseException:
            self._child = None
            raise
        if len(answer) == 2:
            raise ImageError(bytes(answer[0]).decode(), bytes(answer[1]).decode())
        width, height, seconds = DECODED_HEAD.unpack(answer[0])
        pixels = np.frombuffer(answer[1], np.uint8).reshape(self._side, self._side, 3)
        return Pixels(pixels, width, height), seconds

    def _make(self) -> ChildProcess:
        for attempt in range(_STARTS):
            try:
                return ChildProcess("jobs.workers.decode_child", [self._start])
            except (ChildDiedError, ChildHungError, OSError) as error:
                failed: Exception = error
                time.sleep(_FIRST_PAUSE * 2**attempt)
        raise UnfinishedError(
            f"The process that decodes images does not start: {failed}. Finished shards are kept; give the same "
            "command again once this is mended (with little memory left, a smaller runtime.decode_tasks helps)."
        )

    def _alone(self, data: bytes, first: Exception) -> tuple[Pixels, float]:
        """Decode what a process has died of, or hung on, in processes of its own."""
        crashes = kills = 0
        hung = isinstance(first, ChildHungError)
        while True:
            try:
                return self._ask(data)
            except ChildHungError as error:
                if hung:
                    raise ImageError(
                        "hang",
                        f"The image was not decoded within {self._limits.timeout_s:g} s, tried twice "
                        "(decode.timeout_s). Its decoder was ended.",
                    ) from error
                hung = True
            except ChildDiedError as error:
                crashes += not error.outside
                kills += error.outside
                if crashes >= _CRASHES or kills >= _KILLS:
                    raise ImageError(
                        "crash",
                        f"Decoding the image ends the process that does it, alone too: {error}. The image is damaged "
                        "in a way that its decoder cannot bear, or made to harm.",
                    ) from error
                if error.outside:
                    time.sleep(_FIRST_PAUSE * 2 ** (kills - 1))
            finally:
                self.close()  # nothing that it left behind meets the next image


def memory_bytes() -> int:
    """The memory of this machine, or what a container is allowed of it."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return min(total, int(Path(name).read_text()))
        except (OSError, ValueError):
            continue
    return total


_decoders: dict[tuple[int, int, PreprocessSettings, DecodeSettings], Decoder] = {}


def decoder_of(preprocess: PreprocessSettings, limits: DecodeSettings) -> Decoder:
    """This thread's decoder for these settings, kept until the process ends: its start is paid once."""
    key = (os.getpid(), threading.get_ident(), preprocess, limits)
    if key not in _decoders:
        decoder = _decoders[key] = Decoder(preprocess, limits)
        atexit.register(decoder.close)
    return _decoders[key]
