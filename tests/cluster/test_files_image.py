"""The container image: cluster/Dockerfile, checked line by line without Docker."""

import fnmatch
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.requirements import requirements
from tests.test_house import ROOT, pins, project

DOCKERFILE = ROOT / "cluster" / "Dockerfile"
IGNORE = ROOT / "cluster" / "Dockerfile.dockerignore"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, each with its whole text."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in (line.partition(" ") for line in lines)]


def having(word: str) -> list[str]:
    return [text for name, text in instructions() if name == word]


def copied() -> list[str]:
    """What is copied from the checkout, as paths in it."""
    return [source for text in having("COPY") for source in text.split()[:-1]]


def test_the_base_is_pinned_and_a_python_that_the_project_takes() -> None:
    [base] = having("FROM")
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-\w+", base)
    assert version
    # constraints.txt was made with this Python.
    assert f"Python {version[1]}." in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_it_does_not_run_as_root() -> None:
    names = [name for name, _ in instructions()]
    assert having("USER")[-1] == "1000"  # a number: Kubernetes cannot tell whether a name is root
    assert "RUN" not in names[len(names) - names[::-1].index("USER") :]
    assert any("--uid 1000" in text for text in having("RUN"))


def test_layers_keep_no_package_lists_and_no_downloads() -> None:
    for text in having("RUN"):
        if "apt-get install" in text:
            assert "apt-get update &&" in text
            assert "--no-install-recommends" in text
            assert text.endswith("rm -rf /var/lib/apt/lists/*")
        if "pip install" in text:
            assert "--no-cache-dir" in text
        assert "sudo" not in text.split()
        assert not re.search(r"curl .*\| *(ba)?sh", text)
    assert not having("ADD")
    assert not having("ENTRYPOINT")  # Ray's launcher and KubeRay give commands of their own


def test_every_package_is_installed_at_its_pinned_version() -> None:
    [install] = [text for text in having("RUN") if "pip install" in text]
    assert "--constraint constraints.txt" in install
    extras = re.search(r"python cluster/requirements\.py ([\w ]+) >", install)
    assert extras
    pinned = {canonicalize_name(name) for name in pins()}
    named = {canonicalize_name(Requirement(text).name) for text in requirements(extras[1].split())}
    assert {"ray", "torch", "s3fs", "pillow-heif"} <= named <= pinned


def test_nodes_of_the_launcher_install_what_the_image_has() -> None:
    [install] = [text for text in having("RUN") if "pip install" in text]
    [launcher] = re.findall(r"requirements\.py ([\w ]+) >", (ROOT / "cluster" / "aws" / "cluster.yaml").read_text())
    assert re.findall(r"requirements\.py ([\w ]+) >", install) == [launcher]


def test_the_code_comes_after_the_packages() -> None:
    """A changed line of code must not rebuild layers of gigabytes."""
    [packages] = [at for at, (name, text) in enumerate(instructions()) if name == "RUN" and "pip install" in text]
    copies = [(at, text.split()[0]) for at, (name, text) in enumerate(instructions()) if name == "COPY"]
    assert [source for at, source in copies if at < packages] == ["pyproject.toml", "cluster/requirements.py"]
    assert {"captioning", "jobs"} <= {source for at, source in copies if at > packages}


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    rules = [line for line in IGNORE.read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"  # nothing but what is named
    let_in = {rule[1:] for rule in rules if rule.startswith("!")}
    for path in copied():
        assert (ROOT / path).exists(), path
        assert any(path == top or path.startswith(f"{top}/") for top in let_in), path
    assert let_in == {path.partition("/")[0] for path in copied()}


def test_what_the_code_reads_is_in_the_image() -> None:
    """The bundled captioners lie in `captioning`; no other folder of the checkout is needed to caption."""
    folders = {path for path in copied() if (ROOT / path).is_dir()}
    assert folders == {"captioning", "jobs", "cluster", "configs"}


def test_secrets_data_and_environments_stay_out() -> None:
    rules = [line for line in IGNORE.read_text().splitlines() if line and not line.startswith("#")]
    for path in (".git", ".venv", "build", "s3.env", "captioning/__pycache__", "jobs/x/y.pyc"):
        kept = False
        for rule in rules:
            pattern = rule.removeprefix("!").removeprefix("**/")
            if any(fnmatch.fnmatch(part, pattern) for part in (path, path.partition("/")[0], Path(path).name)):
                kept = rule.startswith("!")
        assert not kept, path


def healthcheck() -> list[str]:
    [text] = having("HEALTHCHECK")
    return ["bash", "-c", re.search(r'CMD \["bash", "-c", "(.*)"\]', text)[1]]  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/comm").exists(), reason="no /proc")
def test_a_container_is_healthy_as_its_ray_is_where_it_has_one(tmp_path: Path) -> None:
    """With the test's own commands instead of `grep /proc` and `wget`."""
    bodies = {"grep": 'if [[ $1 == -qsx ]]; then exit "$RAYLET"; fi; exec /bin/grep "$@"', "wget": "$SAYS"}
    for name, body in bodies.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"

    def run(**variables: str) -> int:
        return subprocess.run(healthcheck(), env={"PATH": path, **variables}).returncode

    assert run(RAYLET="1", SAYS="false") == 0  # no Ray here
    assert run(RAYLET="0", SAYS="echo success") == 0
    assert run(RAYLET="0", SAYS="false") != 0
    assert run(RAYLET="0", SAYS="echo unhealthy") != 0


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_the_health_check_knows_a_raylet_by_its_name(tmp_path: Path) -> None:
    shutil.copy(shutil.which("sleep") or "", tmp_path / "raylet")
    looking = "for _ in {1..50}; do grep -qsx raylet /proc/[0-9]*/comm && exit 0; sleep 0.1; done; exit 1"
    assert "grep -qsx raylet /proc/[0-9]*/comm" in healthcheck()[2]
    child = subprocess.Popen([tmp_path / "raylet", "60"])
    try:
        assert subprocess.run(["bash", "-c", looking]).returncode == 0
    finally:
        child.kill()
        child.wait()


def test_requirements_follow_extras_and_name_the_wrong_ones(tmp_path: Path) -> None:
    script = ROOT / "cluster" / "requirements.py"
    done = subprocess.run([sys.executable, "-I", script, "runner"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert set(project()["dependencies"]) < set(lines)
    assert any(line.startswith("s3fs") for line in lines)  # runner → s3
    assert not any(line.startswith("captioning") for line in lines)
    wrong = subprocess.run([sys.executable, "-I", script, "runer"], capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "'runer'" in wrong.stderr
    assert "runner" in wrong.stderr
