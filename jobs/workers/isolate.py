"""Captions images of which some end, fill or hang the captioner's process: found by halving, set aside.

A shard at which captioner processes died comes here (`caption_shard`). Its images go to a process
with a captioner of its own; when that dies, to another in two halves, and so on. An image is a
`crash` only when it has ended its own process twice, alone in it; a death by SIGKILL is as a rule
somebody else's doing and counts for nothing until it has met one image alone again and again. A
grey picture tells a captioner that dies of anything, which ends the run.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from captioning.errors import ImageError, UnfinishedError
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess
from jobs.workers.micro_batches import HUNG, CaptionerLike, CaptionLike, Pixels, grey

#: Deaths of its own process, alone, that make an image a `crash`; and those by SIGKILL.
_CRASHES, _KILLS = 2, 6
_FIRST_PAUSE = 0.25
#: How often a process is started before that is no image's fault.
_STARTS = 4


@dataclass(frozen=True)
class Isolated:
    """A caption that came from another process."""

    text: str
    score: float
    num_tokens: int
    alternatives: tuple[tuple[str, float], ...]


class Isolation:
    """The process that suspect images are captioned in, and its replacements.

    `hang_seconds` is what a request may take (0: a day).
    """

    def __init__(self, load: Callable[[], CaptionerLike], batch_size: int, hang_seconds: float) -> None:
        from ray import cloudpickle

        self._start = [json.dumps({"batch_size": batch_size}).encode(), cloudpickle.dumps(load)]
        self._seconds = hang_seconds or 86_400.0
        self._child: ChildProcess | None = None

    def caption(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        """A caption, or the reason why not, for each of the pixels (B, S, S, 3). Raises `UnfinishedError`."""
        try:
            found = self._alone(grey(pixels))
            if isinstance(found, ImageError):
                raise UnfinishedError(
                    f"The captioner's process ends whatever it is shown: {found.message} Finished shards are kept; "
                    "give the same command again once this is mended. If memory ran out, a smaller runtime.actors or "
                    "runtime.batch_size helps."
                )
            return self._halved(pixels)
        finally:
            self._close()

    def _halved(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        if len(pixels) == 1:
            return [self._alone(pixels)]
        with contextlib.suppress(ChildDiedError, ChildHungError):
            return self._ask(pixels)
        half = len(pixels) // 2
        return self._halved(pixels[:half]) + self._halved(pixels[half:])

    def _alone(self, image: Pixels) -> CaptionLike | ImageError:
        crashes = kills = hangs = 0
        while True:
            self._close()
            try:
                return self._ask(image)[0]
            except ChildDiedError as error:
                hangs += error.code == HUNG
                crashes += not error.outside
                kills += error.outside
                reason = str(error)
            except ChildHungError as error:
                hangs += 1
                reason = str(error)
            if hangs >= _CRASHES:
                return ImageError("hang", f"The captioner gave no caption of the image within {self._seconds:g} s.")
            if crashes >= _CRASHES or kills >= _KILLS:
                return ImageError("crash", f"Captioning the image ends the process that does it, alone too: {reason}.")
            time.sleep(_FIRST_PAUSE * 2**kills if kills else 0.0)

    def _ask(self, pixels: Pixels) -> list[CaptionLike | ImageError]:
        if self._child is None:
            self._child = self._make()
        try:
            answer = self._child.ask([json.dumps(pixels.shape).encode(), pixels.tobytes()], seconds=self._seconds)
        except BaseException:
            self._child = None
            raise
        if len(answer) == 2:
            raise UnfinishedError(answer[0].decode())
        return [_from_json(found) for found in json.loads(answer[0])]

    def _make(self) -> ChildProcess:
        for attempt in range(_STARTS):
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
        raise UnfinishedError(f"The captioner could not be loaded in a process of its own: {failed}.")

    def _close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None


def _from_json(found: dict[str, Any]) -> CaptionLike | ImageError:
    if "error_class" in found:
        return ImageError(found["error_class"], found["message"])
    alternatives = tuple((str(text), float(score)) for text, score in found["alternatives"])
    return Isolated(found["text"], found["score"], found["num_tokens"], alternatives)
