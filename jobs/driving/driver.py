"""What every driver of a run does, whichever shards it works on: one owner, progress, event log, end.

Knows its runner by the results, and nothing of how the shards were chosen.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from captioning.errors import CaptioningError, RunLockedError, StorageError
from captioning.redaction import without_secrets
from captioning.run.book import ShardBook
from captioning.run.events import START, append_event
from captioning.run.layout import RunLayout
from captioning.run.lock import RunLock
from captioning.run.redo import forget_leftovers
from captioning.run.verify import verify
from jobs.caption_settings import CaptionSettings
from jobs.display import say
from jobs.driving.make_work import make_work
from jobs.driving.outcome import Outcome, summarise
from jobs.progress import Progress, counted
from jobs.runners.choice import open_runner
from jobs.runners.pools import Pools, plan_pools
from jobs.runners.replan import Replan
from jobs.runners.work import Runner, ShardResult, Tally, Work

if TYPE_CHECKING:
    from captioning.captioner_info import CaptionerInfo

#: How often a shard whose staged file turns out damaged is captioned again.
REPAIRS = 3
#: Seconds between two events of progress.
_EVENT_EVERY = 5.0


class RunDriver:
    """A driver at work in one OUTPUT; what it does is the subclass's. `ref` is the captioner's REF."""

    info: "CaptionerInfo"
    runner: Runner

    def __init__(
        self, layout: RunLayout, settings: CaptionSettings, ref: str | None, decoding: dict[str, Any], stream: Any
    ) -> None:
        self.layout = layout
        self.settings = settings
        self.ref = absolute_ref(ref)
        self.decoding = decoding
        self.stream = stream
        self.started = time.monotonic()
        self.tally = Tally()
        self.steady: float | None = None
        #: Whether there is a run in OUTPUT, and with it an event log.
        self.begun = False
        self.lock: RunLock | None = None
        self._noting = threading.Lock()

    def inspect(self) -> "CaptionerInfo":
        """The captioner of REF, without its weights. Raises `CheckpointError`, `SettingsError`."""
        from captioning.captioner_info import inspect_captioner

        return inspect_captioner(
            self.ref,
            decoding=self.decoding,
            precision=self.settings.runtime.precision,
            storage=self.settings.storage,
        )

    @contextmanager
    def locked(self, again: str) -> Iterator[None]:
        """RunLock OUTPUT for as long as the work takes, and note how it ended; `again` says how to go on.

        Raises `RunLockedError` when another driver has it, and `KeyboardInterrupt` with a message.
        """
        with self._leaving_nothing(), RunLock(self.layout, notify=self.say) as self.lock:
            with suppress(StorageError):  # not everybody may list uploads
                self.layout.root.abort_uploads("part-")
            try:
                yield
            except KeyboardInterrupt:
                self.note("interrupted")
                raise KeyboardInterrupt(f"{self._kept()} {again}") from None
            except RunLockedError:
                raise  # the event log is another driver's by now
            except CaptioningError as error:
                self.note("stopped", reason=str(error))
                if isinstance(error, StorageError) and self.begun:
                    message = f"{error.message} {self._kept()} Once this is mended: {again[:1].lower()}{again[1:]}"
                    raise StorageError(error.error_class, message) from error
                raise

    def _kept(self) -> str:
        if not self.begun:
            return "Nothing was written yet."
        return f"{counted(self.finished(), 'image')} of this run finished and kept."

    @contextmanager
    def _leaving_nothing(self) -> Iterator[None]:
        """Remove the folders of a run that never began, unless they are another driver's."""
        try:
            yield
        finally:
            if not self.begun and self.lock is not None and self.lock.is_held:
                _remove_empty_folders(self.layout)

    def finished(self) -> int:
        """Images that this driver has finished."""
        return self.tally.images

    def note(self, kind: str, **fields: Any) -> None:
        """Add to the event log of a run that has begun; where that cannot be written nothing stops. For any thread."""
        if not self.begun:
            return
        try:
            with self._noting:
                append_event(self.layout, kind, **fields)
        except StorageError as error:
            self.say(f"The event {kind!r} could not be noted: {error}")

    def say(self, text: str) -> None:
        """Tell people one line."""
        say(text, self.stream)

    @contextmanager
    def with_runner(self, images: int | None) -> Iterator[None]:
        """Have what captions about so many images (None: many) for as long as the body takes.

        Raises `SettingsError` for settings that cannot run there, and `UnfinishedError` where it cannot be had.
        """
        runtime = self.settings.runtime
        with open_runner(runtime, images) as self.runner:
            plan_pools(runtime, self.runner.nodes(), shards=1)
            yield

    def work_off(
        self,
        book: ShardBook,
        shards: Sequence[int],
        *,
        images: int,
        total: int,
        finished: Callable[[int], None],
        event: str = START,
        plan_token: str = "",
    ) -> None:
        """Have these shards captioned by the runner, `images` of `total` images; `finished` is told each one's number.

        What is captioned again has another `event`, and the token of the plan that says so.

        Raises the `CaptioningError` of a worker, `UnfinishedError` when workers die, `UsageError` when OUTPUT
        is a folder that not all of them see, and `RunLockedError` when another driver has taken over.
        """
        if self.layout.root.is_local:
            self.runner.require_shared(self.layout.run_json.local_path)
        left = _Left(dict.fromkeys(shards), images)

        def plan(count: int) -> Pools:
            workers = self.runner.most_workers(count, left.images)
            return plan_pools(self.settings.runtime, self.runner.nodes(), shards=workers)

        pools: Pools | None = plan(len(left.shards))
        self.note(event, model=self.info.name, pending=images, shards=len(shards), pools=str(pools))
        with Progress(total, total - images, stream=self.stream) as progress:
            progress.say(
                f"{counted(images, 'image')} in {counted(len(shards), 'shard')} with {self.info.name}: {pools}."
            )
            log = _LogWriter(self)

            def took(result: ShardResult) -> None:
                self.tally.add(event + plan_token, result)
                progress.add(result.images, result.errors, result.stages)
                self.steady = progress.steady_rate() or self.steady
                log.add(result)
                self.check_lock()
                finished(result.shard)
                left.take(result)

            try:
                while pools is not None:
                    pools = self._caption_until_grown(book, pools, left, plan, took, progress)
            finally:
                log.flush()

    def _caption_until_grown(
        self,
        book: ShardBook,
        pools: Pools,
        left: "_Left",
        plan: Callable[[int], Pools],
        took: Callable[[ShardResult], None],
        progress: Progress,
    ) -> Pools | None:
        """Caption what is `left`; returns better pools where the cluster has grown meanwhile, None at the end."""
        replan = Replan(plan, pools, len(left.shards))
        run = without_secrets(str(self.layout.root))
        with (
            self.runner.observe(run, pools, progress.say, self.note) as observer,
            closing(self.runner.caption_shards(self._work(book, pools), pools, list(left.shards))) as results,
        ):
            for result in results:
                took(result)
                if observer is not None:
                    observer.finished(result, images=left.images, shards=len(left.shards), rate=self.steady)
                better = replan.after(len(left.shards))
                if better is not None:
                    progress.say(f"The cluster has grown: going on with {better}.")
                    self.note("pools", pools=str(better), shards=len(left.shards))
                    return better
        return None

    def _work(self, book: ShardBook, pools: Pools) -> Work:
        return make_work(book, pools, self.settings, self.info, ref=self.ref, decoding=self.decoding)

    def check_lock(self) -> None:
        """Raise `RunLockedError` when another driver has taken over OUTPUT."""
        if self.lock is not None:
            self.lock.check()

    def finish(self) -> Outcome:
        """Verify the table, and write what this driver did to `summary.json`."""
        verdict = verify(self.layout)
        forget_leftovers(self.layout)
        seconds = time.monotonic() - self.started
        summary = summarise(self.tally, verdict, seconds=seconds, steady_rate=self.steady)
        self.check_lock()
        self.layout.summary.write_text(json.dumps(summary, indent=2) + "\n", temp=self.layout.tmp_dir)
        if self.tally:
            classes = dict(sorted(verdict.errors.items()))
            self.note("finished", ok=verdict.ok, seconds=summary["seconds"], error_classes=classes)
        return Outcome(summary, verdict, self.settings.errors.max_fraction)


def absolute_ref(ref: str | None) -> str | None:
    """A checkpoint's folder as every process on this machine finds it; any other REF as it is."""
    if ref is None or "://" in ref or not Path(ref).expanduser().is_dir():
        return ref
    from captioning.refs import bundled_names

    return ref if ref in bundled_names() else str(Path(ref).expanduser().absolute())


def _remove_empty_folders(layout: RunLayout) -> None:
    """Leave nothing of a run that never began: folders only, and only those that are empty."""
    if not layout.root.is_local:
        return
    for folder in (layout.index_dir, layout.tmp_dir, layout.run_dir, layout.root):
        try:
            folder.local_path.rmdir()
        except OSError:
            continue


@dataclass
class _Left:
    """What a stretch of work has still to do."""

    shards: dict[int, None]
    """Their numbers, in order."""
    images: int

    def take(self, result: ShardResult) -> None:
        """This one is done."""
        self.shards.pop(result.shard, None)
        self.images -= result.images


class _LogWriter:
    """Adds finished shards to the events, a few seconds' worth at a time."""

    def __init__(self, run: RunDriver) -> None:
        self._run = run
        self._written = time.monotonic()
        self._counts: Counter[str] = Counter()
        self._classes: Counter[str] = Counter()
        self._stages: Counter[str] = Counter()

    def add(self, result: ShardResult) -> None:
        self._counts.update(shards=1, images=result.images, errors=result.errors)
        self._classes.update(result.error_classes)
        self._stages.update(result.stages)
        if time.monotonic() - self._written >= _EVENT_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._counts:
            classes = {"error_classes": dict(self._classes)} if self._classes else {}
            stages = {name: round(seconds, 3) for name, seconds in self._stages.items()}
            self._run.note("shards", **self._counts, **classes, stages=stages)
        self._counts.clear()
        self._classes.clear()
        self._stages.clear()
        self._written = time.monotonic()
