"""Rows made again: the shards of a redo plan captioned, and every part rewritten as soon as it can be.

Serves `retry` and `caption --refresh changed`. Knows the order of the steps; what is made again
is the plan's, how is the pipeline's.
"""

from captioning.errors import UnfinishedError
from captioning.run.index import Index
from captioning.run.layout import PartRange
from captioning.run.redo import RedoBook, RedoPlan
from jobs.driving.driver import REPAIRS, RunDriver


def settle(driver: RunDriver, plan: RedoPlan, index: Index) -> dict[PartRange, set[int]]:
    """Rewrite the parts whose rows are all staged; the shards of the others that are still to be done."""
    left: dict[PartRange, set[int]] = {}
    for part in plan.parts():
        driver.check_lock()
        missing = plan.settle(index, part)
        if missing:
            left[part] = set(missing)
    if not left:
        plan.close()
    return left


def work_off_plan(driver: RunDriver, plan: RedoPlan, index: Index) -> None:
    """Caption what the plan still asks for, and rewrite its parts until none is left."""
    for _ in range(1 + REPAIRS):
        left = settle(driver, plan, index)
        if not left:
            return
        images = 0
        part_of: dict[int, PartRange] = {}
        for part, numbers in left.items():
            images += sum(number in numbers for number in plan.chosen(part)["shard"].to_pylist())
            part_of.update(dict.fromkeys(numbers, part))

        def finished(shard: int, left: dict[PartRange, set[int]] = left, of: dict[int, PartRange] = part_of) -> None:
            left[of[shard]].discard(shard)
            if not left[of[shard]]:
                plan.settle(index, of[shard])

        driver.work_off(
            RedoBook(plan, index),
            sorted(part_of),
            images=images,
            total=plan.images,
            finished=finished,
            event=plan.kind,
            plan_token=plan.token,
        )
    if settle(driver, plan, index):
        raise UnfinishedError(
            f"Rows that were made again could not be kept in {driver.layout.retry_dir}: their files were damaged each "
            "time. Check the disk, then give the same command again."
        )
