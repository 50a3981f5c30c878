"""The verb `plan`: forecasts what captioning an archive will take, from a sample of it."""

from typing import Annotated

import typer

from jobs.cli import ConfigOption, ModelOption, SetOption


def plan(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT",
            help="What to caption, as for `caption`: folders, images, globs, tars, lists; local or any fsspec URI.",
            show_default=False,
        ),
    ],
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTPUT",
            help="The run's folder or URI, new or existing. It must be writable, though nothing is written; images "
            "that are done there do not count towards the time.",
            show_default=False,
        ),
    ] = None,
    model: ModelOption = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            "--price-per-hour",
            metavar="X",
            min=0.0,
            help="What one machine costs per hour, in any currency; a cluster costs that much per node.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            metavar="N",
            min=1,
            help="Images to caption, drawn from the whole archive. Without it: as many as take about a minute.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
    config: ConfigOption = None,
    settings: SetOption = None,
) -> None:
    """Forecast what captioning an archive will take, before you start it.

    Lists the archive, captions a sample on the machines that `caption` would use, and prints the
    rate, the share of each stage, the time and the cost of the whole, the sizes of what will be
    written, the share of errors, and suitable settings. Nothing is written.

    Takes the settings of `caption` (--set decoding.beam_size=5, --set runtime.batch_size=64). Example:

    python -m jobs plan s3://bucket/photos --price-per-hour 1.20
    """
    import json

    from jobs.caption_settings import read_caption_settings
    from jobs.display import print_line
    from jobs.planning.run import PlanRequest, make_plan
    from jobs.planning.text import plan_json, plan_lines

    parsed, decoding = read_caption_settings(config, settings or [])
    request = PlanRequest(
        inputs=tuple(inputs),
        output=output,
        model=model,
        settings=parsed,
        decoding=decoding,
        sample=sample,
        price_per_hour=price_per_hour,
    )
    made = make_plan(request, print_line)
    if as_json:
        print(json.dumps(plan_json(made)))
        return
    for line in plan_lines(made):
        print(line)
