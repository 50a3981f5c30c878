"""METEOR 1.5, computed by its own Java program from the optional extra `captioning[meteor]`.

No Python implementation gives the same numbers (nltk's METEOR differs), so without the extra or Java there is an
error and no substitute.
"""

import importlib.util
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from captioning.errors import InputError

Tokens = Sequence[str]

_JAR = "meteor/meteor-1.5.jar"


def meteor(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """METEOR in 0..1 of the corpus. Raises `InputError` if the extra or Java is missing."""
    with tempfile.TemporaryFile("w+") as errors:
        program = subprocess.Popen(
            _command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8"
        )
        with program:
            try:
                # Each caption's statistics, then the score of all of them.
                counts = [
                    _ask(program, "SCORE", *(" ".join(each) for each in originals), " ".join(candidate))
                    for candidate, originals in zip(candidates, references, strict=True)
                ]
                _ask(program, "EVAL", *counts)
                answers = [_read(program) for _ in counts]
            except (OSError, EOFError) as error:
                errors.seek(0)
                reason = (errors.read().strip().splitlines() or ["no message"])[-1]
                raise InputError(f"METEOR's Java program failed: {reason}. Leave METEOR out.") from error
            finally:
                program.kill()
    return float(answers[-1])


def is_available() -> bool:
    """Whether the extra and Java are installed."""
    package = importlib.util.find_spec("pycocoevalcap")
    return package is not None and shutil.which("java") is not None


def require() -> None:
    """Raise `InputError` if the extra or Java is missing."""
    _command()


def _command() -> list[str]:
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise InputError("METEOR needs the optional extra: pip install 'captioning[meteor]', or leave METEOR out.")
    java = shutil.which("java")
    if java is None:
        raise InputError("METEOR needs Java, and no `java` is on the PATH: install a Java runtime or leave METEOR out.")
    # Other locales print a decimal comma.
    locale = ["-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8"]
    jar = Path(package.submodule_search_locations[0]) / _JAR
    return [java, "-Xmx2G", *locale, "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]


def _ask(program: "subprocess.Popen[str]", *parts: str) -> str:
    """Send one line and return the first line of the answer."""
    assert program.stdin is not None
    program.stdin.write(" ||| ".join(parts) + "\n")
    program.stdin.flush()
    return _read(program)


def _read(program: "subprocess.Popen[str]") -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise EOFError
    return line.strip()
