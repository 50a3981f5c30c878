"""A plan as text for people and as plain values for programs."""

from typing import Any

from jobs.planning.run import Plan
from jobs.progress import counted, duration


def plan_lines(plan: Plan) -> list[str]:
    """The plan as the lines of a small table."""
    archive, run = plan.survey, plan.run
    rows = [("archive", _archive(plan)), ("sample", _sample(plan))]
    rough = ", roughly: the sample is small" if plan.rate.rough else ""
    rows.append(
        (
            "rate",
            f"{plan.rate.images_per_second:,.1f} images/s after start-up ({plan.pools}, in batches of "
            f"{plan.pools.batch_size}){rough}",
        )
    )
    rows.append(
        ("start-up", f"{duration(plan.rate.startup_seconds)}, including listing ({plan.listing_seconds:.1f} s)")
    )
    nodes = counted(plan.resources.nodes, "node")
    left = f"{counted(plan.pending, 'image')} not yet in OUTPUT" if plan.run_exists else "whole archive"
    rows.append(("time", f"{duration(plan.seconds)} for the {left}, on {nodes} as now"))
    rows.append(("stages", ", ".join(f"{name} {share:.0%}" for name, share in plan.stage_shares.items())))
    if plan.cost is not None:
        rows.append(
            (
                "cost",
                f"{_money(plan.cost.archive)} at {plan.cost.price_per_hour:g} per hour and node; "
                f"{_money(plan.cost.million)} per million images",
            )
        )
    sizes = [f"table about {size_text(plan.table_bytes)}"] if plan.table_bytes else []
    rows.append(("output", ", ".join([*sizes, f"index about {size_text(archive.index_bytes)}"])))
    rows.append(("settings", _settings(plan)))
    rows += [("advice", line) for line in plan.advice.lines]
    failed = sum(run.error_classes.values())
    if failed:
        classes = ", ".join(f"{count:,} {name}" for name, count in run.error_classes.items())
        expected = round(failed / run.images * archive.images)
        rows.append(("errors", f"{failed / run.images:.2%} of the sample: {classes}; about {expected:,} in total"))
    width = max(len(name) for name, _ in rows) + 2
    return [f"{name:<{width}}{text}" for name, text in rows]


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as plain values, in seconds, bytes and images a second."""
    run, archive = plan.run, plan.survey
    failed = sum(run.error_classes.values())
    return {
        "images": archive.images,
        "bytes": archive.bytes_total,
        "pending": plan.pending,
        "sample": run.images,
        "model": plan.model,
        "images_per_second": round(plan.rate.images_per_second, 3),
        "rough": plan.rate.rough,
        "startup_seconds": round(plan.rate.startup_seconds, 3),
        "listing_seconds": round(plan.listing_seconds, 3),
        "seconds": round(plan.seconds, 3),
        "stages": {name: round(share, 4) for name, share in plan.stage_shares.items()},
        "batch_rates": {str(size): round(rate, 3) for size, rate in sorted(plan.trial.batch_rates.items())},
        "nodes": plan.resources.nodes,
        "cores": plan.resources.cores,
        "gpus": plan.resources.gpus,
        "settings": {
            "runtime.actors": plan.advice.actors,
            "runtime.batch_size": plan.advice.batch_size,
            **({} if plan.advice.decode_tasks is None else {"runtime.decode_tasks": plan.advice.decode_tasks}),
        },
        "advice": list(plan.advice.lines),
        "cost": None
        if plan.cost is None
        else {
            "price_per_hour": plan.cost.price_per_hour,
            "archive": round(plan.cost.archive, 4),
            "million": round(plan.cost.million, 4),
        },
        "table_bytes": plan.table_bytes,
        "index_bytes": archive.index_bytes,
        "error_fraction": failed / run.images if run.images else 0.0,
        "error_classes": run.error_classes,
    }


def size_text(size: float) -> str:
    """A size for people: `950 B`, `14.2 kB`, `3.1 GB`."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:.0f} B" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit ends the loop")


def _archive(plan: Plan) -> str:
    total = plan.survey.bytes_total
    size = f", {size_text(total)} ({size_text(total / plan.survey.images)} each)" if total is not None else ""
    return f"{counted(plan.survey.images, 'image')}{size}"


def _sample(plan: Plan) -> str:
    return f"{counted(plan.run.images, 'image')} from all over the archive, with {plan.model}"


def _settings(plan: Plan) -> str:
    advice = plan.advice
    tasks = "" if advice.decode_tasks is None else f" runtime.decode_tasks={advice.decode_tasks}"
    return f"runtime.actors={advice.actors}{tasks} runtime.batch_size={advice.batch_size}"


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"
