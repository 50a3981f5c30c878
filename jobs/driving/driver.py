"""The base class of drivers: locks OUTPUT, captions given shards on a runner, reports progress, and finishes the run.

Subclasses choose the shards.
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
from captioning.run.events import START, append_event
from captioning.run.layout import RunLayout
from captioning.run.lock import RunLock
from captioning.run.redo import delete_leftovers
from captioning.run.shard_io import ShardIO
from captioning.run.verify import verify
from jobs.caption_settings import CaptionSettings
from jobs.display import print_line
from jobs.driving.make_work import make_work
from jobs.driving.outcome import Outcome, summarise
from jobs.progress import Progress, counted
from jobs.runners.choice import open_runner
from jobs.runners.pools import Pools, plan_pools
from jobs.runners.replan import Replan
from jobs.runners.work import Runner, ShardResult, Tally, Work

if TYPE_CHECKING:
    from captioning.captioner_info import CaptionerInfo

#: How often shards whose staged files turn out damaged are captioned again.
REPAIRS = 3
#: Seconds between two progress events in the event log.
_EVENT_EVERY = 5.0


class RunDriver:
    """A driver of the run in one OUTPUT. `ref` is the captioner's REF, `stream` where progress is shown."""

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
        self.steady_rate: float | None = None
        #: Whether OUTPUT has a run, and so an event log.
        self.run_exists = False
        self.lock: RunLock | None = None
        self._log_lock = threading.Lock()

    def inspect(self) -> "CaptionerInfo":
        """The captioner of REF without its weights. Raises `CheckpointError`, `SettingsError`."""
        from captioning.captioner_info import inspect_captioner

        return inspect_captioner(
            self.ref,
            decoding=self.decoding,
            precision=self.settings.runtime.precision,
            storage=self.settings.storage,
        )

    @contextmanager
    def locked(self, hint: str) -> Iterator[None]:
        """Lock OUTPUT during the body, and log how it ended; `hint` tells the user how to resume.

        Raises `RunLockedError` when another driver has the lock, and `KeyboardInterrupt` with a message.
        """
        with self._removing_empty_folders(), RunLock(self.layout, notify=self.notify) as self.lock:
            with suppress(StorageError):  # credentials may not permit listing uploads
                self.layout.root.abort_uploads("part-")
            try:
                yield
            except KeyboardInterrupt:
                self.log_event("interrupted")
                raise KeyboardInterrupt(f"{self._kept_message()} {hint}") from None
            except RunLockedError:
                raise  # the event log now belongs to another driver
            except CaptioningError as error:
                self.log_event("stopped", reason=str(error))
                if isinstance(error, StorageError) and self.run_exists:
                    message = f"{error.message} {self._kept_message()} Once this is fixed, {hint[:1].lower()}{hint[1:]}"
                    raise StorageError(error.error_class, message) from error
                raise

    def _kept_message(self) -> str:
        if not self.run_exists:
            return "Nothing has been written yet."
        return f"{counted(self.tally.images, 'image')} finished and kept."

    @contextmanager
    def _removing_empty_folders(self) -> Iterator[None]:
        """At the end remove the folders of a run that was never created, unless they are another driver's."""
        try:
            yield
        finally:
            if not self.run_exists and self.lock is not None and self.lock.is_held:
                _remove_empty_folders(self.layout)

    def log_event(self, kind: str, **fields: Any) -> None:
        """Append to the event log, if there is a run; failures are only reported. Thread-safe."""
        if not self.run_exists:
            return
        try:
            with self._log_lock:
                append_event(self.layout, kind, **fields)
        except StorageError as error:
            self.notify(f"The event {kind!r} could not be logged: {error}")

    def notify(self, text: str) -> None:
        """Show a line to the user."""
        print_line(text, self.stream)

    @contextmanager
    def with_runner(self, images: int | None) -> Iterator[None]:
        """Open a runner for about this many images (None: many) during the body.

        Raises `SettingsError` for settings that it does not support, and `UnfinishedError` if it is not available.
        """
        runtime = self.settings.runtime
        with open_runner(runtime, images) as self.runner:
            plan_pools(runtime, self.runner.nodes(), shards=1)
            yield

    def caption_shards(
        self,
        shard_io: ShardIO,
        shards: Sequence[int],
        *,
        images: int,
        total: int,
        on_finished: Callable[[int], None],
        event: str = START,
        plan_token: str = "",
    ) -> None:
        """Caption these shards on the runner, `images` of `total` images; calls `on_finished` with each shard's number.

        Shards of a redo plan have another start `event`, and the token of the plan.

        Raises the `CaptioningError` of a worker, `UnfinishedError` when workers die, `UsageError` when OUTPUT
        is a folder that not all nodes see, and `RunLockedError` when another driver has taken over.
        """
        if self.layout.root.is_local:
            self.runner.require_shared(self.layout.run_json.local_path)
        remaining = _Remaining(dict.fromkeys(shards), images)

        def plan(count: int) -> Pools:
            workers = self.runner.max_workers(count, remaining.images)
            return plan_pools(self.settings.runtime, self.runner.nodes(), shards=workers)

        pools: Pools | None = plan(len(remaining.shards))
        self.log_event(event, model=self.info.name, pending=images, shards=len(shards), pools=str(pools))
        with Progress(total, total - images, stream=self.stream) as progress:
            progress.print_line(
                f"{counted(images, 'image')} in {counted(len(shards), 'shard')} with {self.info.name}: {pools}."
            )
            log = _LogWriter(self)

            def handle(result: ShardResult) -> None:
                self.tally.add(event + plan_token, result)
                progress.add(result.images, result.errors, result.stages)
                self.steady_rate = progress.steady_rate() or self.steady_rate
                log.add(result)
                self.check_lock()
                on_finished(result.shard)
                remaining.remove(result)

            try:
                while pools is not None:
                    pools = self._caption_until_grown(shard_io, pools, remaining, plan, handle, progress)
            finally:
                log.flush()

    def _caption_until_grown(
        self,
        shard_io: ShardIO,
        pools: Pools,
        remaining: "_Remaining",
        plan: Callable[[int], Pools],
        handle: Callable[[ShardResult], None],
        progress: Progress,
    ) -> Pools | None:
        """Caption the remaining shards; returns larger pools if the cluster has grown meanwhile, None at the end."""
        replan = Replan(plan, pools, len(remaining.shards))
        run = without_secrets(str(self.layout.root))
        with (
            self.runner.observe(run, pools, progress.print_line, self.log_event) as observer,
            closing(self.runner.caption_shards(self._work(shard_io, pools), pools, list(remaining.shards))) as results,
        ):
            for result in results:
                handle(result)
                if observer is not None:
                    observer.shard_finished(
                        result, images=remaining.images, shards=len(remaining.shards), rate=self.steady_rate
                    )
                better = replan.after(len(remaining.shards))
                if better is not None:
                    progress.print_line(f"The cluster has grown: continuing with {better}.")
                    self.log_event("pools", pools=str(better), shards=len(remaining.shards))
                    return better
        return None

    def _work(self, shard_io: ShardIO, pools: Pools) -> Work:
        return make_work(shard_io, pools, self.settings, self.info, ref=self.ref, decoding=self.decoding)

    def check_lock(self) -> None:
        """Raise `RunLockedError` when another driver has taken over OUTPUT."""
        if self.lock is not None:
            self.lock.check()

    def finish(self) -> Outcome:
        """Verify the table, and write `summary.json`."""
        verdict = verify(self.layout)
        delete_leftovers(self.layout)
        seconds = time.monotonic() - self.started
        summary = summarise(self.tally, verdict, seconds=seconds, steady_rate=self.steady_rate)
        self.check_lock()
        self.layout.summary.write_text(json.dumps(summary, indent=2) + "\n", temp=self.layout.tmp_dir)
        if self.tally:
            classes = dict(sorted(verdict.errors.items()))
            self.log_event("finished", ok=verdict.ok, seconds=summary["seconds"], error_classes=classes)
        return Outcome(summary, verdict, self.settings.errors.max_fraction)


def absolute_ref(ref: str | None) -> str | None:
    """The absolute path of a checkpoint's folder; any other REF unchanged."""
    if ref is None or "://" in ref or not Path(ref).expanduser().is_dir():
        return ref
    from captioning.refs import bundled_names

    return ref if ref in bundled_names() else str(Path(ref).expanduser().absolute())


def _remove_empty_folders(layout: RunLayout) -> None:
    """Remove the folders of a run that was never created, if they are empty."""
    if not layout.root.is_local:
        return
    for folder in (layout.index_dir, layout.tmp_dir, layout.run_dir, layout.root):
        try:
            folder.local_path.rmdir()
        except OSError:
            continue


@dataclass
class _Remaining:
    """The shards, by number and in order, and the number of images that are not done yet."""

    shards: dict[int, None]
    images: int

    def remove(self, result: ShardResult) -> None:
        """Remove a finished shard."""
        self.shards.pop(result.shard, None)
        self.images -= result.images


class _LogWriter:
    """Logs finished shards, summed over a few seconds per event."""

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
            self._run.log_event("shards", **self._counts, **classes, stages=stages)
        self._counts.clear()
        self._classes.clear()
        self._stages.clear()
        self._written = time.monotonic()
