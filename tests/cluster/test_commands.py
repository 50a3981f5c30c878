"""The commands against a fake head: requests, messages and exit codes."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.__main__ import app
from cluster.packaging import ROOT
from cluster.status import last_lines
from tests.cluster.fake_head import FakeHead

pytestmark = pytest.mark.usefixtures("nobodys_home")

CAPTION = ("--", "caption", "s3://bucket/photos", "-o", "s3://bucket/captions")
TOKEN = "5e0c1de1f3"


def cluster(head: FakeHead | str, command: str, *arguments: str) -> Result:
    address = head if isinstance(head, str) else head.address
    return CliRunner().invoke(app, [command, "--address", address, *arguments], catch_exceptions=False)


def test_a_job_is_sent_watched_and_ends_with_its_code(head: FakeHead, config: Path) -> None:
    head.writes = ["3 of 9 images (33.3%)\n", "9 of 9 images (100%)\n"]
    done = cluster(head, "submit", *CAPTION, "--config", str(config))
    assert done.exit_code == 0, done.stderr
    assert done.stdout == "3 of 9 images (33.3%)\n9 of 9 images (100%)\n"
    [job] = head.submitted
    assert re.fullmatch(r"caption-\d{8}-\d{6}-[0-9a-f]{6}", job["submission_id"])
    assert f"Submitted job {job['submission_id']}" in done.stderr
    assert "succeeded" in done.stderr
    [(name, package)] = head.packages.items()
    assert job["runtime_env"]["working_dir"] == f"gcs://{name}"
    assert int(job["runtime_env"]["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) >= 60
    start = "exec sh cluster/start.sh caption s3://bucket/photos -o s3://bucket/captions --config _submitted/mine-"
    assert job["entrypoint"].startswith(start)
    with zipfile.ZipFile(BytesIO(package)) as archive:
        assert archive.read(job["entrypoint"].split()[-1]) == config.read_bytes()
        assert "captioning/assets/flickr-lstm/model.safetensors" in archive.namelist()


def test_what_the_cluster_has_is_not_sent_again(head: FakeHead) -> None:
    assert "Sending this checkout" in cluster(head, "submit", *CAPTION).stderr
    again = cluster(head, "submit", *CAPTION)
    assert "nothing to send" in again.stderr
    assert len(head.packages) == 1
    assert len(head.submitted) == 2
    assert sum(each.startswith("PUT") for each in head.asked) == 1


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        ({"status": "FAILED", "driver_exit_code": 1}, 1),
        ({"status": "FAILED", "driver_exit_code": 2}, 2),
        ({"status": "FAILED", "driver_exit_code": -9}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_the_exit_code_is_that_of_the_job(head: FakeHead, ends: dict, code: int) -> None:
    head.ends = ends
    assert cluster(head, "submit", *CAPTION).exit_code == code


def test_detached_it_prints_the_id_and_what_to_do_next(head: FakeHead) -> None:
    head.ends = {"status": "RUNNING"}
    done = cluster(head, "submit", "--detach", *CAPTION)
    assert done.exit_code == 0
    job_id = done.stdout.strip()
    assert job_id == head.submitted[0]["submission_id"]
    for command in ("logs -f", "status", "stop"):
        assert f"python -m cluster {command} {job_id} --address {head.address}" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--", "capture", "s3://a"),
        ("--", "caption", "s3://a", "-o", "s3://b", "--set", "nothing=1"),
        ("--", "caption", "s3://a"),
        ("--", "caption", "photos", "-o", "s3://b"),
        ("--env", "NO_SUCH_VARIABLE", *CAPTION),
        ("--requirements", "/nowhere.txt", *CAPTION),
    ],
)
def test_errors_are_reported_before_the_cluster_is_contacted(head: FakeHead, arguments: tuple[str, ...]) -> None:
    done = cluster(head, "submit", *arguments)
    assert done.exit_code == 2
    assert done.stderr
    assert not head.asked


def test_a_lost_answer_starts_no_second_job(head: FakeHead) -> None:
    head.lose_answers = 1
    done = cluster(head, "submit", *CAPTION)
    assert done.exit_code == 0, done.stderr
    assert len(head.submitted) == 1


def test_a_log_is_resumed_where_the_connection_was_lost(head: FakeHead) -> None:
    head.job("caption-1", status="SUCCEEDED", driver_exit_code=0)
    head.logs["caption-1"] = ["one\n", "two\n", None, "three\n", None, "four\n"]
    done = cluster(head, "logs", "-f", "caption-1")
    assert done.exit_code == 0
    assert done.stdout == "one\ntwo\nthree\nfour\n"
    assert "connection" in done.stderr
    assert cluster(head, "logs", "caption-1").stdout == "one\ntwo\nthree\nfour\n"


# Access and addresses.


def test_the_token_is_sent_and_in_no_output(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    head.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("MY_SECRET", "hush-hush")
    head.refuse = (500, f"Traceback (most recent call last):\n  x\nValueError: hush-hush and Bearer {TOKEN}")
    done = cluster(head, "submit", "--env", "MY_SECRET", *CAPTION)
    assert done.exit_code == 1
    assert "ValueError: *** and Bearer ***" in done.stderr
    head.refuse = None
    done = cluster(head, "submit", "--env", "MY_SECRET", *CAPTION)
    assert done.exit_code == 0, done.stderr
    assert head.submitted[0]["runtime_env"]["env_vars"]["MY_SECRET"] == "hush-hush"
    assert not re.search(f"{TOKEN}|hush-hush", done.output)


@pytest.mark.parametrize("command", ["submit", "status", "logs", "stop", "list"])
def test_a_missing_token_is_reported_with_where_to_put_it(head: FakeHead, command: str) -> None:
    head.token = TOKEN
    arguments = {"submit": CAPTION, "list": ()}.get(command, ("caption-1",))
    done = cluster(head, command, *arguments)
    assert done.exit_code == 2
    assert "requires a token, and none was found here (HTTP 401)" in done.stderr
    assert "~/.ray/auth_token" in done.stderr


def test_a_wrong_token_is_reported_with_its_source(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    head.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another1")
    done = cluster(head, "list")
    assert done.exit_code == 2
    assert "rejects the token from RAY_AUTH_TOKEN (HTTP 403)" in done.stderr
    assert "another1" not in done.output


def test_a_netrc_does_not_replace_the_token(head: FakeHead, monkeypatch: pytest.MonkeyPatch) -> None:
    (Path.home() / ".netrc").write_text("machine 127.0.0.1 login somebody password something\n")
    head.token = TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    assert cluster(head, "list").exit_code == 0


def test_an_address_without_an_answer_is_reported() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    done = cluster(address, "submit", *CAPTION)
    assert done.exit_code == 1
    assert f"No cluster answers at {address}: connection refused" in done.stderr
    done = cluster("http://no-such-host.invalid:8265", "list")
    assert done.exit_code == 1
    assert "host not found" in done.stderr or "No cluster answers" in done.stderr


def test_a_server_other_than_ray_is_reported(head: FakeHead) -> None:
    head.ray = None  # type: ignore[assignment]
    done = cluster(head, "submit", *CAPTION)
    assert done.exit_code == 2
    assert "not the Jobs API of a Ray cluster" in done.stderr


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("command", [["list"], ["list", "--json"], ["status", "x"], ["logs", "x"], ["stop", "x"]])
def test_a_web_page_is_not_taken_for_ray(head: FakeHead, command: list[str], status: int) -> None:
    head.page = status
    done = cluster(head, *command)
    assert done.exit_code == 2
    if status == 200 or command[0] == "list":
        assert "not the Jobs API of a Ray cluster" in done.stderr
    assert "<html>" not in done.output


def test_other_versions_are_noted_and_too_old_ones_refused(head: FakeHead) -> None:
    head.ray, head.python = "2.99.0", "3.99.1"
    done = cluster(head, "submit", *CAPTION)
    assert done.exit_code == 0
    assert "the cluster runs Ray 2.99.0 and Python 3.99.1" in done.stderr
    head.ray = "2.9.0"
    done = cluster(head, "submit", *CAPTION)
    assert done.exit_code == 2
    assert len(head.submitted) == 1


# Looking after jobs.


def test_status_shows_what_an_operator_needs(head: FakeHead) -> None:
    head.job("caption-1", status="RUNNING")
    head.logs["caption-1"] = [
        "2026-11-26 15:00:00,000 INFO job_manager.py:531 -- Runtime env is setting up.\n",
        "512 of 7,235 images (7.1%), 2 errors, 90.1 images/s, 1 min 14 s left\n",
        "A note.\n",
    ]
    done = cluster(head, "status", "caption-1")
    assert done.exit_code == 0
    told = {line[:10].strip(): line[10:] for line in done.stdout.splitlines()}
    assert told["job"] == "caption-1"
    assert told["state"].startswith("running for")
    assert told["progress"].startswith("512 of 7,235 images")
    assert told["last line"] == "A note."
    assert "logs -f caption-1" in told["next"]
    head.job("caption-1", status="FAILED", driver_exit_code=2, end_time=1_790_000_012_000)
    done = cluster(head, "status", "caption-1")
    assert re.search(r"state +failed after 12 s", done.stdout)
    assert re.search(r"exit code +2", done.stdout)
    assert json.loads(cluster(head, "status", "--json", "caption-1").stdout)["exit_code"] == 2


def test_the_last_line_is_not_rays() -> None:
    assert last_lines("Running entrypoint for job a: b\n") == {}
    assert last_lines("") == {}
    assert last_lines("1 of 2 images\n\n") == {"progress": "1 of 2 images", "last_line": "1 of 2 images"}


def test_stop_waits_and_reports(head: FakeHead) -> None:
    head.job("caption-1", status="RUNNING", runtime_env={"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "120"}})
    done = cluster(head, "stop", "caption-1")
    assert done.exit_code == 0
    assert "up to 120 s" in done.stderr
    assert "was stopped after 12 s. Submit the same command again" in done.stderr
    done = cluster(head, "stop", "caption-1")
    assert done.exit_code == 0
    assert "already ended" in done.stderr
    assert sum(each.endswith("/stop") for each in head.asked) == 1


@pytest.mark.parametrize("arguments", [("status",), ("logs",), ("logs", "-f"), ("stop",)])
def test_an_unknown_job_is_reported(head: FakeHead, arguments: tuple[str, ...]) -> None:
    done = cluster(head, arguments[0], *arguments[1:], "caption-9")
    assert done.exit_code == 2
    assert "has no job caption-9" in done.stderr
    assert "cluster list" in done.stderr


def test_the_list_is_newest_first_and_whole(head: FakeHead) -> None:
    assert "has no jobs" in cluster(head, "list").stderr
    for number in range(3):
        head.job(
            f"caption-{number}",
            status="SUCCEEDED",
            start_time=1_790_000_000_000 + number,
            metadata={"captioning_command": f"caption s3://bucket/{'x' * 100} -o s3://bucket/{number}"},
        )
    lines = cluster(head, "list").stdout.splitlines()
    assert lines[0].split() == ["JOB", "STATE", "SUBMITTED", "TOOK", "EXIT", "COMMAND"]
    assert [line.split()[0] for line in lines[1:]] == ["caption-2", "caption-1", "caption-0"]
    assert lines[1].rstrip().endswith("-o s3://bucket/2")
    assert len(cluster(head, "list", "--limit", "1").stdout.splitlines()) == 2
    assert json.loads(cluster(head, "list", "--json").stdout)[0]["id"] == "caption-2"


def test_ctrl_c_leaves_the_job_running_and_says_what_to_do_next(head: FakeHead) -> None:
    head.job("caption-1", status="RUNNING")
    head.logs["caption-1"] = ["1 of 9 images\n"]
    command = [sys.executable, "-m", "cluster", "logs", "-f", "caption-1", "--address", head.address]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1 of 9 images\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Job caption-1 continues." in told
    assert f"python -m cluster logs -f caption-1 --address {head.address}" in told
    assert f"python -m cluster stop caption-1 --address {head.address}" in told
    assert "Traceback" not in told
    assert not any(each.endswith("/stop") for each in head.asked)


@pytest.mark.parametrize("command", [[], ["submit"], ["status"], ["logs"], ["stop"], ["list"]])
def test_help_does_not_import_ray(command: list[str]) -> None:
    program = (
        "import sys; sys.argv = ['cluster', *sys.argv[1:]]\n"
        "from cluster.__main__ import app\n"
        "try: app(prog_name='python -m cluster')\n"
        "finally: print('LOADED', sorted({'ray', 'torch', 'requests', 'aiohttp', 'pyarrow'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "--help"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    assert "LOADED []" in done.stdout
