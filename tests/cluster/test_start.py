"""What runs on the cluster before the verb: the Python is found, and what it lacks is told."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.packaging import ROOT
from cluster.start import check_requirements


def project(root: Path, dependencies: list[str], runner: list[str]) -> Path:
    root.mkdir()
    (root / "pyproject.toml").write_text(
        f"[project]\ndependencies = {dependencies!r}\n[project.optional-dependencies]\nrunner = {runner!r}\n"
    )
    (root / "constraints.txt").write_text("# pins\nNo.Such-Package==1.2\nnumpy==1.0\n")
    return root


def test_installed_requirements_are_not_reported() -> None:
    needs = check_requirements(ROOT)
    assert not needs.missing
    assert not needs.other


def test_missing_and_old_requirements_are_reported(tmp_path: Path) -> None:
    root = project(
        tmp_path / "p", ["numpy>=99", "no-such-package>=1", "other-missing>=3"], ["typer", "never-asked-for"]
    )
    needs = check_requirements(root)
    assert needs.missing == ["no-such-package==1.2", "other-missing>=3"]
    [other] = needs.other
    assert other.startswith("numpy ")
    assert ">=99" in other


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose start.py only says which Python runs it, and ends with 7."""
    folder = tmp_path / "package" / "cluster"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "cluster/start.sh", folder)
    (folder / "__init__.py").write_text("")
    (folder / "start.py").write_text("import sys\nprint(sys.executable, sys.argv[1:])\nsys.exit(7)\n")
    return folder.parent


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A folder for the PATH on which there is no Python, only what the script itself needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "sed", "tr", "head", "readlink", "ps"):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    return folder


def launcher(path: Path) -> Path:
    """A program that is the Python of the tests, with all its packages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    path.chmod(0o755)
    return path


def run(command: list[str], package: Path, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": str(path), **environment}
    return subprocess.run(command, cwd=package, env=variables, capture_output=True, text=True, timeout=120)


#: A shell in between: what started the script is no Python, as a raylet is none.
FROM_A_SHELL = ["/bin/sh", "-c", "sh cluster/start.sh verb 'two words'; exit $?"]


def test_the_python_on_the_path_is_taken_when_it_has_ray(package: Path, bare_path: Path) -> None:
    launcher(bare_path / "python3")
    done = run(FROM_A_SHELL, package, bare_path)
    assert done.returncode == 7, done.stderr
    assert done.stdout == f"{sys.executable} ['verb', 'two words']\n"


def test_a_python_without_ray_is_passed_over(package: Path, bare_path: Path, tmp_path: Path) -> None:
    without = bare_path / "python3"
    without.write_text("#!/bin/sh\nexit 1\n")
    without.chmod(0o755)
    done = run(FROM_A_SHELL, package, bare_path)
    assert done.returncode == 1
    assert "no Python with Ray" in done.stderr
    environment = launcher(tmp_path / "env" / "bin" / "python").parent.parent
    assert run(FROM_A_SHELL, package, bare_path, VIRTUAL_ENV=str(environment)).returncode == 7


@pytest.mark.parametrize("quoted", [False, True])
def test_the_python_of_the_raylets_workers_is_found(
    package: Path, bare_path: Path, tmp_path: Path, quoted: bool
) -> None:
    python = launcher(tmp_path / ("with blanks" if quoted else "plain") / "python")
    # As a raylet's command line has it. The shell below this process is the supervisor of a job.
    worker = subprocess.list2cmdline([str(python), "setup_worker.py", "default_worker.py", "--node-ip-address=1"])
    program = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:4]))"
    command = [sys.executable, "-c", program, *FROM_A_SHELL, f"--python_worker_command={worker}"]
    done = run(command, package, bare_path)
    assert done.returncode == 7, done.stderr


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_the_python_that_loaded_ray_is_found(package: Path, bare_path: Path) -> None:
    program = "import ray, subprocess, sys; sys.exit(subprocess.call(sys.argv[1], shell=True))"
    done = run([sys.executable, "-c", program, "exec sh cluster/start.sh verb"], package, bare_path)
    assert done.returncode == 7, done.stderr
