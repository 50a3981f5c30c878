"""The verb `status`: a run's progress."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.cli import UNFINISHED, ConfigOption, SetOption
from jobs.verb_settings import read_verb_settings

if TYPE_CHECKING:
    from jobs.status_facts import Status


def status(
    output: Annotated[
        str, typer.Argument(metavar="OUTPUT", help="The run: what `caption` was given with -o.", show_default=False)
    ],
    errors: Annotated[
        bool, typer.Option("--errors", help="Count errors in the table, not in the event log: slower, but exact.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Show a run's progress: how much is done, how fast it goes, and the time left.

    Reads file names and the run's event log, not the table, so it is quick for any archive. Exit code 0
    when every image has its row, 1 when not, 2 when there is no run. Settings: storage.*. Examples:

    watch python -m jobs status build/pictures

    python -m jobs status s3://bucket/captions --errors --json
    """
    import json

    from captioning.run.layout import RunLayout
    from captioning.storage import Location
    from jobs.lean_arrow import lean_arrow
    from jobs.status_facts import status_of
    from jobs.verify_settings import VerifySettings

    lean_arrow()
    parsed = read_verb_settings(VerifySettings, config, settings)
    found = status_of(RunLayout(Location.parse(output, parsed.storage)), read_errors=errors)
    if as_json:
        print(json.dumps(status_json(found)))
    else:
        for line in status_lines(found, output):
            print(line)
    if not found.progress.finished:
        raise typer.Exit(UNFINISHED)


def status_lines(found: "Status", output: str) -> list[str]:
    """The status as the lines of a small table."""
    from jobs.progress import duration, percent

    at = found.progress
    rows = [("run", f"{output}: {found.state}" + (f", {found.holder}" if found.holder else ""))]
    rows.append(
        ("images", f"{at.done:,} of {at.images:,} done ({percent(at.done, at.images)}), {at.pending:,} pending")
    )
    classes = ", ".join(f"{count:,} {name}" for name, count in found.errors.items())
    source = "" if found.errors_read else " (from the event log; --errors counts them in the table)"
    rows.append(("errors", f"{sum(found.errors.values()):,}{f': {classes}' if classes else ''}{source}"))
    if found.images_per_second:
        left = f", {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
        when = "recently" if found.state == "running" else "when last running"
        rows.append(("rate", f"{found.images_per_second:,.1f} images/s {when}{left}"))
    rows.append(
        (
            "table",
            f"{at.parts:,} of {at.parts_total:,} parts; {at.shards_done:,} of {at.shards:,} shards done, "
            f"{at.staged:,} of them staged",
        )
    )
    rows += [("events" if not number else "", _event(event)) for number, event in enumerate(found.last)]
    if found.state == "stopped":
        rows.append(("next", "run its `caption` command again to resume"))
    return [f"{name:<8}{text}" for name, text in rows]


def status_json(found: "Status") -> dict[str, Any]:
    """The status as plain values."""
    at = found.progress
    return {
        "state": found.state,
        "holder": found.holder,
        "images": at.images,
        "done": at.done,
        "pending": at.pending,
        "errors": found.errors,
        "errors_counted_in": "table" if found.errors_read else "events",
        "images_per_second": found.images_per_second,
        "seconds_left": found.seconds_left,
        "shards": at.shards,
        "shards_done": at.shards_done,
        "parts": at.parts,
        "parts_in_all": at.parts_total,
        "staged": at.staged,
        "last_events": list(found.last),
    }


def _event(event: dict[str, Any]) -> str:
    """An event as one line of bounded length."""
    facts = ", ".join(f"{key} {_fact(value)}" for key, value in event.items() if key not in ("time", "event"))
    text = " ".join(f"{event.get('time', '?')} {event.get('event', '?')}{f': {facts}' if facts else ''}".split())
    return text if len(text) <= 160 else text[:159] + "…"


def _fact(value: Any) -> str:
    return (
        "(" + ", ".join(f"{key} {each}" for key, each in value.items()) + ")" if isinstance(value, dict) else f"{value}"
    )
