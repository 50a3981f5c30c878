"""The verb `doctor`: checks that everything captioning needs is here, and says what to do where it is not."""

from typing import Annotated

import typer

from jobs.cli import UNFINISHED, ConfigOption, ModelOption, SetOption
from jobs.verb_settings import read_verb_settings


def doctor(
    model: ModelOption = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="URI", help="Check that this archive can be listed and read; repeatable."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="URI", help="Check that a run can be written here, with a small file."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Check everything that captioning needs, and say how to fix what does not work.

    Checks Python and its packages, cores, memory, disks, GPUs, storage (where its credentials come
    from, never what they are) and Ray (on this machine, or the cluster of RAY_ADDRESS and its nodes),
    and has the captioner caption a test picture. A check that fails stops no other.

    Exit code 0 when everything needed works (! marks a warning), 1 when not. Settings: storage.*.

    Examples:

    python -m jobs doctor

    python -m jobs doctor --input s3://bucket/photos --output s3://bucket/captions

    RAY_ADDRESS=10.0.0.5:6379 python -m jobs doctor --model build/mine/best --json
    """
    import json
    import sys

    from jobs.diagnosis.all_checks import DoctorRequest, run_checks
    from jobs.diagnosis.settings import DoctorSettings

    parsed = read_verb_settings(DoctorSettings, config, settings)
    doctor = DoctorRequest(model=model, inputs=tuple(inputs or ()), output=output, settings=parsed)
    marks = {"ok": "✓", "warn": "!", "fail": "✗"}
    try:
        "".join(marks.values()).encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        marks = {"ok": "+", "warn": "!", "fail": "x"}
    found = []
    for finding in run_checks(doctor):
        found.append(finding)
        if not as_json:
            print(finding.shown(marks[finding.state]), flush=True)
    failed = [finding for finding in found if finding.state == "fail"]
    if as_json:
        print(json.dumps({"ok": not failed, "checks": [finding.to_dict() for finding in found]}))
    elif failed:
        names = ", ".join(finding.name for finding in failed)
        print(f"\nFailed: {names}. Follow the advice at the arrows, then run doctor again.")
    else:
        print("\nEverything required works. Next: python -m jobs caption FOLDER -o OUTPUT")
    if failed:
        raise typer.Exit(UNFINISHED)
