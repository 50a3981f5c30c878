"""Captions images some of which crash or hang the captioner's process, and finds these by bisection.

`caption_shard` uses it for a shard at which captioner processes died. The images are captioned in a child process;
when it dies they are split in two halves, and so on. An image gets the error class `crash` only if it has ended its
own process twice, alone; a death by SIGKILL usually has an external cause, and counts only after it has happened
several times to the same image alone. A grey test image detects a captioner that crashes on every image, which
ends the run.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captioning.errors import ImageError, UnfinishedError
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess
from jobs.workers.micro_batches import EXIT_HUNG, CaptionerLike, CaptionLike, Pixels, grey_image

#: Deaths of its own process, alone, that make an image a `crash`; and deaths by SIGKILL that do.
_MAX_CRASHES, _MAX_KILLS = 2, 6
_FIRST_PAUSE = 0.25
#: The most attempts to start a process.
_MAX_STARTS = 4


@dataclass(frozen=True)
class IsolatedCaption:
    """A caption from a child process."""

    text: str
    score: float
    num_tokens: int
    alternatives: tuple[tuple[str, float], ...]


class Isolation:
    """The child process that captions suspect images, and its replacements.

    `hang_seconds` is the time limit of a request (0: a day).
    """

    def __init__(self, load: Callable[[], CaptionerLike], batch_size: int, hang_seconds: float) -> None:
        from ray import cloudpickle

        self._start = [json.dumps({"batch_size": batch_size}).encode(), cloudpickle.dumps(load)]
        self._seconds = hang_seconds or 86_400.0
        self._child: ChildProcess | None = None

    def caption(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        """A caption or an error for each of the pixels (B, S, S, 3). Raises `UnfinishedError`."""
        try:
            found = self._caption_alone(grey_image(pixels))
            if isinstance(found, ImageError):
                raise UnfinishedError(
                    f"The captioner's process fails on every image: {found.message} Finished shards are kept; run the "
                    "same command again once this is fixed. If memory ran out, use a smaller runtime.actors or "
                    "runtime.batch_size."
                )
            return self._bisect(pixels)
        finally:
            self._close()

    def _bisect(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        if len(pixels) == 1:
            return [self._caption_alone(pixels)]
        with contextlib.suppress(ChildDiedError, ChildHungError):
            return self._request(pixels)
        half = len(pixels) // 2
        return self._bisect(pixels[:half]) + self._bisect(pixels[half:])

    def _caption_alone(self, image: Pixels) -> CaptionLike | ImageError:
        crashes = kills = hangs = 0
        while True:
            self._close()
            try:
                return self._request(image)[0]
            except ChildDiedError as error:
                hangs += error.code == EXIT_HUNG
                crashes += not error.killed_externally
                kills += error.killed_externally
                reason = str(error)
            except ChildHungError as error:
                hangs += 1
                reason = str(error)
            if hangs >= _MAX_CRASHES:
                return ImageError("hang", f"The image was not captioned within {self._seconds:g} s.")
            if crashes >= _MAX_CRASHES or kills >= _MAX_KILLS:
                return ImageError("crash", f"Captioning the image repeatedly crashed the process: {reason}.")
            time.sleep(_FIRST_PAUSE * 2**kills if kills else 0.0)

    def _request(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        if self._child is None:
            self._child = self._start_child()
        try:
            answer = self._child.request([json.dumps(pixels.shape).encode(), pixels.tobytes()], seconds=self._seconds)
        except BaseException:
            self._child = None
            raise
        if len(answer) == 2:
            raise UnfinishedError(answer[0].decode())
        return [_from_json(found) for found in json.loads(answer[0])]

    def _start_child(self) -> ChildProcess:
        for attempt in range(_MAX_STARTS):
            try:
                child = ChildProcess("jobs.workers.captioner_child", self._start)
            except (ChildDiedError, ChildHungError, OSError) as error:
                failed: Exception = error
                time.sleep(_FIRST_PAUSE * 2**attempt)
            else:
                if not child.ready:
                    return child
                child.kill()
                raise UnfinishedError(f"The captioner could not be loaded: {child.ready[0].decode()}")
        raise UnfinishedError(f"The captioner could not be loaded in a separate process: {failed}.")

    def _close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def _from_json(found: dict[str, Any]) -> CaptionLike | ImageError:
    if "error_class" in found:
        return ImageError(found["error_class"], found["message"])
    alternatives = tuple((str(text), float(score)) for text, score in found["alternatives"])
    return IsolatedCaption(found["text"], found["score"], found["num_tokens"], alternatives)
