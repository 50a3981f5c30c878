"""One Ray for many commands: a JSON list of arguments a line of stdin, exit code and output a line of stdout."""

import json
import sys
from collections.abc import Iterator

from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.ray_session import ray_session


def serve(lines: Iterator[str]) -> None:
    with ray_session(num_cpus=2):
        for line in lines:
            done = CliRunner().invoke(app, json.loads(line))
            print(json.dumps([done.exit_code, done.output + repr(done.exception or "")]), flush=True)


if __name__ == "__main__":
    serve(iter(sys.stdin))
