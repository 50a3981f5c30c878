"""A captioner in a child process, which is restarted when it dies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captioning.config import build, to_dict
from captioning.data.preprocess import PreprocessSettings
from captioning.errors import UnfinishedError
from jobs.serving.request_errors import RequestError
from jobs.serving.settings import ServeSettings
from jobs.workers.child_process import ChildDiedError, ChildHungError, ChildProcess

#: A batch that takes longer is taken to hang.
_HUNG_SECONDS = 900.0
#: Attempts at a batch: a process may die of something else, but a batch that ends two is given up.
_ATTEMPTS = 2


class CaptionProcess:
    """For use by one thread at a time. Raises `UnfinishedError` where the captioner cannot be loaded."""

    def __init__(
        self, ref: str | None, settings: ServeSettings, threads: int, cores: Sequence[int] = (), device: str = "auto"
    ) -> None:
        start = {"ref": ref, "settings": to_dict(settings), "threads": threads, "cores": list(cores), "device": device}
        self._start_frame = [json.dumps(start).encode()]
        self._child: ChildProcess | None = None
        about = self._start_child()
        #: The captioner's preprocessing.
        self.preprocess = build(PreprocessSettings, about.pop("preprocess"), where="the preprocessing")
        #: Its device: `cpu` or `cuda`.
        self.device: str = about.pop("device")
        #: Its name, kind, whether it has attention, and its default decoding.
        self.about: dict[str, Any] = about

    def caption(
        self, pixels: NDArray[np.uint8], overrides: Mapping[str, Any], *, attention: bool
    ) -> list[dict[str, Any]]:
        """Caption pixels (B, S, S, 3); the results of `caption_child`, in order. Raises `RequestError`."""
        asked = {"shape": pixels.shape, "overrides": dict(overrides), "attention": attention}
        frame = [json.dumps(asked).encode(), pixels.tobytes()]
        answer: dict[str, Any] = json.loads(self._request(frame)[0])
        if "refused" in answer:
            raise RequestError(*answer["refused"][:3], retry_after=answer["refused"][3])
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        results: list[dict[str, Any]] = answer["results"]
        return results

    @property
    def lost(self) -> bool:
        """Whether it has no process: the last one died and none has been started since."""
        return self._child is None

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.kill()
            self._child = None

    def _request(self, frame: list[bytes]) -> list[bytearray]:
        for _ in range(_ATTEMPTS):
            if self._child is None:
                self._start_child()
            assert self._child is not None
            try:
                return self._child.request(frame, seconds=_HUNG_SECONDS)
            except (ChildDiedError, ChildHungError):
                self._child = None
        raise RequestError(503, "busy", "The captioner's process failed twice on these images.", retry_after=10)

    def _start_child(self) -> dict[str, Any]:
        try:
            child = ChildProcess("jobs.serving.caption_child", self._start_frame)
        except (ChildDiedError, ChildHungError, OSError) as error:
            raise UnfinishedError(f"The captioner's process could not be started: {error}.") from error
        about: dict[str, Any] = json.loads(child.ready[0])
        if "error" in about:
            child.kill()
            raise UnfinishedError(about["error"])
        self._child = child
        return about
