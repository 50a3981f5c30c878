"""Works off a redo plan: captions its shards, and rewrites each part as soon as its shards are done.

Used by `retry` and `caption --refresh changed`.
"""

from captioning.errors import UnfinishedError
from captioning.run.index import Index
from captioning.run.layout import PartRange
from captioning.run.redo import RedoPlan, RedoShardIO
from jobs.driving.driver import REPAIRS, RunDriver


def rewrite_parts(driver: RunDriver, plan: RedoPlan, index: Index) -> dict[PartRange, set[int]]:
    """Rewrite the parts whose rows are all staged; returns the shards of the others that are not."""
    left: dict[PartRange, set[int]] = {}
    for part in plan.parts():
        driver.check_lock()
        missing = plan.rewrite_part(index, part)
        if missing:
            left[part] = set(missing)
    if not left:
        plan.close()
    return left


def run_plan(driver: RunDriver, plan: RedoPlan, index: Index) -> None:
    """Caption the remaining images of the plan, and rewrite its parts until none is left."""
    for _ in range(1 + REPAIRS):
        left = rewrite_parts(driver, plan, index)
        if not left:
            return
        images = 0
        part_of: dict[int, PartRange] = {}
        for part, numbers in left.items():
            images += sum(number in numbers for number in plan.selected(part)["shard"].to_pylist())
            part_of.update(dict.fromkeys(numbers, part))

        def on_finished(
            shard: int, left: dict[PartRange, set[int]] = left, part_of: dict[int, PartRange] = part_of
        ) -> None:
            part = part_of[shard]
            left[part].discard(shard)
            if not left[part]:
                plan.rewrite_part(index, part)

        driver.caption_shards(
            RedoShardIO(plan, index),
            sorted(part_of),
            images=images,
            total=plan.images,
            on_finished=on_finished,
            event=plan.kind,
            plan_token=plan.token,
        )
    if rewrite_parts(driver, plan, index):
        raise UnfinishedError(
            f"Rows that were captioned again could not be stored in {driver.layout.retry_dir}: their files were "
            "damaged every time. Check the disk, then run the same command again."
        )
