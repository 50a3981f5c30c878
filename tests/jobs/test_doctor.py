"""`doctor`: its findings, its advice, and that no failure stops it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from captioning.storage import StorageSettings
from jobs.__main__ import app
from jobs.diagnosis import all_checks, machine_checks, package_checks, storage_checks, torch_checks
from jobs.diagnosis.check_process import CheckProcess
from jobs.gpus import Gpu, parse_gpu
from tests.jobs.archive import write_photos


def only(findings) -> all_checks.Finding:
    [finding] = findings
    return finding


def test_everything_works_here_except_a_missing_input(tmp_path: Path, tiny_captioner: Path) -> None:
    photos = write_photos(tmp_path / "photos", 3)
    command = ["doctor", "--model", str(tiny_captioner), "--input", str(photos), "-o", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*command, "--input", str(tmp_path / "gone")])
    assert result.exit_code == 1, result.output
    told = json.loads(result.stdout)
    states = {}
    for check in told["checks"]:
        states.setdefault(check["name"], []).append(check["state"])
    assert states["input"] == ["ok", "fail"]
    assert not told["ok"]
    for name in ("python", "torch", "torchvision", "captioner", "ray", "output"):
        assert states[name] == ["ok"], (name, told)
    assert not (tmp_path / "out").exists()


def test_a_missing_captioner_is_reported_with_advice() -> None:
    child = CheckProcess("jobs.diagnosis.torch_checks", {"model": "no-such-captioner", "settings": {}})
    found = list(child.findings(("torch", "torchvision", "cuda", "captioner"), seconds=120))
    child.stop()
    assert found[-1].state == "fail"
    assert "no-such-captioner" in found[-1].text
    assert "--model" in found[-1].todo


def test_a_process_that_dies_or_hangs_is_a_finding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dies.py").write_text("import os\nos.abort()\n")
    (tmp_path / "hangs.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    died, hung = CheckProcess("dies", {}), CheckProcess("hangs", {})
    try:
        assert "SIGABRT" in only(died.findings(("torch",), seconds=60)).text
        assert "No answer" in only(hung.findings(("ray",), seconds=0.2)).text
    finally:
        died.stop()
        hung.stop()


def test_a_check_that_fails_stops_no_other() -> None:
    def broken():
        raise ZeroDivisionError("oh")
        yield

    assert "ZeroDivisionError" in only(all_checks._safely("disk", broken)).text


def test_limits_of_a_container_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(str(2**29))
    cores = only(machine_checks.cores(tmp_path))
    assert (cores.state, "0.5" in cores.text, "runtime.actors=1" in cores.todo) == ("warn", True, True)
    memory = only(machine_checks.memory(tmp_path))
    assert (memory.state, "0.5 GiB" in memory.text) == ("fail", True)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine_checks.cpu_quota(tmp_path) is None
    assert machine_checks.memory_limit(tmp_path) is None


def test_packages_that_are_missing_or_old_are_named(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=1.26", "no-such-package>=1", "pillow>=999"]\n'
        '[project.optional-dependencies]\nrunner = ["rich>=13"]\n'
    )
    found = only(package_checks.packages(tmp_path))
    assert found.state == "fail"
    assert "missing: no-such-package" in found.text
    assert "is older than 999" in found.text
    assert "rich" not in found.text


def test_gpus_are_read_from_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    full = parse_gpu("0, NVIDIA H100, 80GB HBM3, 570.10, 81559, 80000, 97")
    assert full == Gpu(0, "NVIDIA H100, 80GB HBM3", "570.10", 81559, 80000, 97)
    assert parse_gpu("1, Tesla, 535, 16000, 10, [N/A]").busy is None
    monkeypatch.setattr(machine_checks, "read_gpus", lambda: [full])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert "less than 2 GiB" in only(machine_checks.gpu()).text
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "hidden" in only(machine_checks.gpu()).text


def test_gpus_that_are_hidden_are_no_fault_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.gpus.read_gpus", lambda: [Gpu(0, "Tesla", "535", 16000, 10, 0)])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found: list[all_checks.Finding] = []
    torch_checks._cuda(found.append)
    assert [finding.state for finding in found] == ["fail"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    torch_checks._cuda(found.append)
    assert len(found) == 1


def test_a_driver_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho Driver/library version mismatch\nexit 18\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = only(machine_checks.gpu())
    assert found.state == "fail"
    assert "mismatch" in found.text
    assert "driver" in found.todo


def test_credentials_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLEEXAMPLE00")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secretsecretsecret")
    said = storage_checks.credentials("s3://bucket/photos", StorageSettings())
    assert said == "; credentials from environment variables"
    assert storage_checks.credentials("/photos", StorageSettings()) == ""
    anonymous = storage_checks.credentials("s3://bucket", StorageSettings(anonymous=True))
    assert "anonymous" in anonymous


def test_a_place_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = only(storage_checks.check_output(str(tmp_path / "file" / "below"), StorageSettings()))
    assert found.state == "fail"
    assert str(tmp_path) in found.text
