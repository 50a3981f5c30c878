"""A captioner in a process of its own, asked for batches, and started again when it dies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import UnfinishedError
from jobs.serving.failures import RequestError
from jobs.serving.settings import ServeSettings
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess

#: A batch that takes longer has hung.
_HUNG_SECONDS = 900.0
#: How often a batch is given to a process: others may kill one, and a batch that kills two is given up.
_TRIES = 2


class CaptionProcess:
    """Used by one thread at a time. Raises `UnfinishedError` where the captioner cannot be loaded."""

    def __init__(
        self, ref: str | None, settings: ServeSettings, threads: int, cores: Sequence[int] = (), device: str = "auto"
    ) -> None:
        start = {"ref": ref, "settings": to_dict(settings), "threads": threads, "cores": list(cores), "device": device}
        self._start = [json.dumps(start).encode()]
        self._child: ChildProcess | None = None
        about = self._begin()
        #: How the captioner takes its images.
        self.preprocess = build(PreprocessSettings, about.pop("preprocess"), where="the preprocessing")
        #: Where it runs: `cpu`, or `cuda`.
        self.device: str = about.pop("device")
        #: What it is: name, kind, whether it attends to a grid, how it decodes unless asked otherwise.
        self.about: dict[str, Any] = about

    def caption(
        self, pixels: NDArray[np.uint8], overrides: Mapping[str, Any], *, attention: bool
    ) -> list[dict[str, Any]]:
        """What is said of pixels (B, S, S, 3), in their order; see `caption_child`. Raises `RequestError`."""
        asked = {"shape": pixels.shape, "overrides": dict(overrides), "attention": attention}
        frame = [json.dumps(asked).encode(), pixels.tobytes()]
        answer: dict[str, Any] = json.loads(self._ask(frame)[0])
        if "refused" in answer:
            raise RequestError(*answer["refused"][:3], retry_after=answer["refused"][3])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        results: list[dict[str, Any]] = answer["results"]
        return results

    @property
    def lost(self) -> bool:
        """Whether it has no process: the last one died, and no other was started or had work to do."""
        return self._child is None

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _ask(self, frame: list[bytes]) -> list[bytearray]:
        for _ in range(_TRIES):
            if self._child is None:
                self._begin()
            assert self._child is not None
            try:
                return self._child.request(frame, seconds=_HUNG_SECONDS)
            except (ChildDiedError, ChildHungError):
                self._child = None
        raise RequestError(503, "busy", "The captioner's process ended twice at these images.", retry_after=10)

    def _begin(self) -> dict[str, Any]:
        try:
            child = ChildProcess("jobs.serving.caption_child", self._start)
        except (ChildDiedError, ChildHungError, OSError) as error:
            raise UnfinishedError(f"The captioner's process could not be started: {error}.") from error
        about: dict[str, Any] = json.loads(child.ready[0])
        if "error" in about:
            child.kill()
            raise UnfinishedError(about["error"])
        self._child = child
        return about
