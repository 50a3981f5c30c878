"""A job's runtime environment on every node: the package, environment variables, packages to install.

Values of variables never appear in messages.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from captioning.errors import UsageError
from cluster.job import STOP_WAIT_VARIABLE

#: Seconds that a job has to end once it is asked to stop: the default and the minimum.
STOP_WAIT, _LEAST_STOP_WAIT = 120, 60
#: Variables that are passed on where they are set.
_PASSED_ON = ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "CAPTIONING_TRACEBACK")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def job_variables(given: Sequence[str], environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """A job's variables: those it always needs, and those given as `NAME` or `NAME=VALUE`.

    `NAME` alone takes its value from `environment` (this process's). Raises `UsageError`.
    """
    environment = os.environ if environment is None else environment
    variables = {name: environment[name] for name in _PASSED_ON if environment.get(name)}
    variables[STOP_WAIT_VARIABLE] = str(STOP_WAIT)
    for text in given:
        name, equals, value = text.partition("=")
        if not _NAME.fullmatch(name):
            raise UsageError("--env takes NAME=VALUE, or NAME for the value on this machine.")
        if not equals:
            if name not in environment:
                raise UsageError(f"--env {name}: this variable is not set here. Set it, or pass --env {name}=VALUE.")
            value = environment[name]
        variables[name] = value
    wait = variables[STOP_WAIT_VARIABLE]
    if not wait.isdigit() or int(wait) < _LEAST_STOP_WAIT:
        raise UsageError(
            f"{STOP_WAIT_VARIABLE} must be a whole number of seconds, at least {_LEAST_STOP_WAIT}: with less, a job "
            "that is stopped is killed before it has written what it finished."
        )
    return variables


def packages_to_install(packages: Sequence[str], requirements: Path | None) -> list[str]:
    """The packages for pip to install: the lines of a requirements file, then single packages.

    Raises `UsageError` for a file that cannot be read or names further files, which nodes do not have.
    """
    lines: list[str] = []
    if requirements is not None:
        try:
            text = requirements.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--requirements {requirements} cannot be read: {error}.") from None
        for line in text.splitlines():
            line = re.sub(r"(^|\s)#.*$", "", line).strip()
            if re.match(r"(-r|-c|-e|--requirement|--constraint|--editable)\b|\.{0,2}/", line):
                raise UsageError(
                    f"--requirements {requirements}: {line!r} names a file on this machine, which the nodes do not "
                    "have. List the packages themselves instead."
                )
            if line:
                lines.append(line)
    return [*lines, *packages]


def runtime_env(uri: str, variables: Mapping[str, str], packages: Sequence[str]) -> dict[str, Any]:
    """Ray's `runtime_env`."""
    environment: dict[str, Any] = {"working_dir": uri, "env_vars": dict(variables)}
    if packages:
        environment["pip"] = {"packages": list(packages), "pip_check": False}
    return environment
