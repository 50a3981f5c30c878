"""The command `status`: a job's state."""

import json
import re
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli import AddressOption, IdArgument, command, connect

if TYPE_CHECKING:
    from cluster.job import Job

#: Lines that Ray adds to a job's log.
_LOG_NOISE = re.compile(r"^(Running entrypoint for job|Runtime env is setting up|\d{4}-\d\d-\d\d .*\bINFO\b)")


def status(
    job: IdArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    address: AddressOption = None,
) -> None:
    """Show a job's state, its duration, its last line of progress, and how it ended.

    The exit code is 0 for any job that the cluster knows; the job's own exit
    code is printed.
    """
    api = connect(address)
    found = api.job(job)
    lines = last_lines(api.logs(job))
    if as_json:
        print(json.dumps(status_json(found, lines), indent=2))
        return
    rows = [("job", found.id), *status_rows(found, lines, address), ("cluster", api.shown)]
    for name, text in rows:
        first, *more = text.splitlines() or [""]
        print(f"{name:<10}{first}")
        for line in more:
            print(f"{'':<10}{line}")


def last_lines(log: str) -> dict[str, str]:
    """The last line of a job's log (`last_line`) and its last line of progress (`progress`), if any."""
    from captioning.redaction import without_secrets
    from cluster.log_view import PROGRESS

    lines = [line.strip() for line in log.splitlines()]
    own_lines = [line for line in lines if line and not _LOG_NOISE.match(line)]
    progress = next((line for line in reversed(own_lines) if PROGRESS.search(line)), None)
    found = {"progress": progress, "last_line": own_lines[-1] if own_lines else None}
    return {name: without_secrets(line)[:500] for name, line in found.items() if line}


def status_rows(found: "Job", lines: dict[str, str], address: str | None) -> list[tuple[str, str]]:
    """A job's status for people: names and texts."""
    from cluster.job import local_time

    state = found.state_text
    if found.started is not None:
        how_long = f"for {found.elapsed()}" if not found.over else f"after {found.elapsed()}"
        state += f" {how_long}, submitted {local_time(found.started)}"
        state += f", ended {local_time(found.ended)}" if found.ended is not None else ""
    rows = [("state", state), ("command", found.command)]
    if "progress" in lines:
        rows.append(("progress", lines["progress"]))
    if "last_line" in lines and lines.get("progress") != lines["last_line"]:
        rows.append(("last line", lines["last_line"]))
    if found.over:
        rows.append(("exit code", str(found.code)))
        rows.append(("", found.outcome()))
    else:
        rows.append(("message", found.reason()))
        rows.append(("next", command(f"logs -f {found.id}", address)))
    return rows


def status_json(found: "Job", lines: dict[str, str]) -> dict[str, Any]:
    """A job as plain values; times are Unix timestamps."""
    return {
        "id": found.id,
        "state": found.state.lower(),
        "command": found.command,
        "submitted": found.started,
        "ended": found.ended,
        "exit_code": found.code,
        "message": found.reason(),
        "progress": lines.get("progress"),
        "last_line": lines.get("last_line"),
    }
