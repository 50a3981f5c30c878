"""One run of `retry`: selects the failed rows of a table, captions them again, and replaces them.

The bookkeeping is in `captioning.run.redo`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from captioning.config import build, deep_merge, read_values
from captioning.errors import InputError, SettingsError
from captioning.run.index import Index
from captioning.run.layout import RunLayout
from captioning.run.record import RunRecord
from captioning.run.redo import RedoPlan, make_plan
from captioning.run.redo_selection import failed_images
from captioning.run.staging import fold
from captioning.storage import Location, StorageSettings
from jobs.caption_settings import CaptionSettings
from jobs.driving.checks import fingerprint_parts
from jobs.driving.driver import RunDriver
from jobs.driving.outcome import Outcome
from jobs.driving.redo import rewrite_parts, run_plan
from jobs.verb_settings import read_config

#: Settings that decide captions or the division into shards, and so cannot be changed.
_FIXED = ("decoding", "output")
#: Keys of the settings in `run.json` that are not `CaptionSettings`.
_NOT_SETTINGS = ("model", "preprocess")


@dataclass(frozen=True)
class RetryRequest:
    """The command as given; `classes` are the error classes, () for all."""

    output: str
    classes: tuple[str, ...] = ()
    model: str | None = None
    config: Path | None = None
    overrides: tuple[str, ...] = ()


def retry_rows(request: RetryRequest, progress_stream: Any = None) -> Outcome:
    """Caption again the failed rows of the run in OUTPUT.

    Raises as `caption_archive` does.
    """
    run = _begin(request, progress_stream)
    with run.locked("Run the same command again to resume."):
        return run.run()


def _begin(request: RetryRequest, stream: Any) -> "_RetryRun":
    text, where = read_config(request.config)
    given = read_values(text, request.overrides, where=where)
    for key in _FIXED:
        if key in given:
            raise SettingsError(
                f"In {where}: {key} is fixed for a run, so retry cannot change it. Remove it, or caption into another "
                "OUTPUT."
            )
    storage = build(StorageSettings, given.get("storage") or {}, where=where)
    layout = RunLayout(Location.parse(request.output, storage))
    record = RunRecord.read(layout)
    if record is None:
        raise InputError(f"There is no run in {layout.root} (it has no _run/run.json). Pass a run's OUTPUT.")
    recorded = {key: value for key, value in record.settings.items() if key not in _NOT_SETTINGS}
    settings = build(CaptionSettings, deep_merge(recorded, given), where=f"{where} and {layout.run_json}")
    layout = RunLayout(Location.parse(request.output, settings.storage))
    ref = request.model if request.model is not None else record.settings.get("model")
    return _RetryRun(layout, settings, ref, record, request.classes, stream)


class _RetryRun(RunDriver):
    def __init__(
        self,
        layout: RunLayout,
        settings: CaptionSettings,
        ref: str | None,
        record: RunRecord,
        classes: tuple[str, ...],
        stream: Any,
    ) -> None:
        super().__init__(layout, settings, ref, dict(record.settings["decoding"]), stream)
        self.classes = classes
        self.info = self.inspect()
        record.check_captioner(layout, fingerprint_parts(self.info, Index.load(layout).kept_schema))
        self.run_exists = True

    def run(self) -> Outcome:
        index = Index.load(self.layout)
        fold(self.layout, index)
        plan = RedoPlan.load(self.layout)
        retried = pa.array([], pa.string())
        if plan is not None:
            retried = pa.array([name for part in plan.parts() for name in plan.selected(part)["image_id"].to_pylist()])
            what = "retry" if plan.kind == "retry" else "refresh (caption --refresh changed)"
            self.notify(f"Resuming an unfinished {what}.")
            self._run_plan(plan, index)
        if plan is None or (plan.kind, plan.classes) != ("retry", self.classes):
            # Rows that have just failed again are not retried once more.
            selected = (
                (part, rows.filter(pc.invert(pc.is_in(rows["image_id"], retried))))
                for part, rows in failed_images(self.layout, index, self.classes, self.settings.storage)
            )
            plan = make_plan(self.layout, "retry", selected, classes=self.classes)
            if plan is not None:
                self._run_plan(plan, index)
        return self.finish()

    def _run_plan(self, plan: RedoPlan, index: Index) -> None:
        if rewrite_parts(self, plan, index):
            with self.with_runner(plan.images):
                run_plan(self, plan, index)
