"""What a job's processes are given."""

from pathlib import Path

import pytest

from captioning.errors import UsageError
from cluster.runtime_env import job_variables, packages_to_install, runtime_env


def test_variables_are_those_needed_and_those_given() -> None:
    here = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "", "SECRET": "s3cret", "OTHER": "x"}
    assert job_variables(["SECRET", "A=b=c"], here) == {
        "OMP_NUM_THREADS": "1",
        "RAY_JOB_STOP_WAIT_TIME_S": "120",
        "SECRET": "s3cret",
        "A": "b=c",
    }


@pytest.mark.parametrize("given", ["NONE", "1A=b", "", "RAY_JOB_STOP_WAIT_TIME_S=3", "RAY_JOB_STOP_WAIT_TIME_S=long"])
def test_variables_that_cannot_be_are_refused(given: str) -> None:
    with pytest.raises(UsageError):
        job_variables([given], {})


def test_a_value_is_in_no_message() -> None:
    with pytest.raises(UsageError) as raised:
        job_variables(["1A=s3cret"], {})
    assert "s3cret" not in str(raised.value)


def test_packages_come_from_a_file_and_singly(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("# ours\ntimm==1.0.20  # pinned\n\n--extra-index-url https://example.org/simple\n")
    packages = packages_to_install(["s3fs"], file)
    assert packages == ["timm==1.0.20", "--extra-index-url https://example.org/simple", "s3fs"]
    environment = runtime_env("gcs://a.zip", {"A": "b"}, packages)
    assert environment["working_dir"] == "gcs://a.zip"
    assert environment["pip"]["packages"] == packages
    assert "pip" not in runtime_env("gcs://a.zip", {}, [])


@pytest.mark.parametrize("line", ["-r more.txt", "-c constraints.txt", "./local", "-e .", "/opt/a.whl"])
def test_a_file_that_names_further_files_is_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text(f"timm\n{line}\n")
    with pytest.raises(UsageError, match="names a file on this machine"):
        packages_to_install([], file)
    with pytest.raises(UsageError, match="cannot be read"):
        packages_to_install([], tmp_path / "none.txt")
