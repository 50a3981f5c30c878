"""On a real cluster with token authentication: submitted over HTTP, watched, stopped, gone on with."""

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.client import Client
from tests.cluster.machines import Machines
from tests.jobs.archive import read_rows, write_photos

#: One captioner starts sooner than two.
ONE = ("--set", "runtime.actors=1")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A client of a cluster whose Python is not on its PATH, and which has no checkout except the one that is sent."""
    with Machines(head_cpus=2, environment={"PYTHONPATH": ""}) as machines:
        yield Client(machines, tmp_path_factory.mktemp("laptop"))


def caption(photos: Path, output: Path, *more: str) -> list[str]:
    return ["--", "caption", str(photos), "-o", str(output), *more]


def job_of(told: str) -> str:
    found = re.search(r"Submitted job (\S+)", told)
    assert found, told
    return found[1]


def test_photos_are_captioned_over_http_with_a_token(
    client: Client, tiny_captioner: Path, tmp_path: Path, config: Path
) -> None:
    photos, output = write_photos(tmp_path / "photos", 12), tmp_path / "out"
    wrong = client.run("submit", *caption(photos, output), token="wrong-token-1")
    assert wrong.returncode == 2
    assert "rejects the token from RAY_AUTH_TOKEN" in wrong.stderr
    assert "wrong-token-1" not in wrong.stdout + wrong.stderr

    more = ("--model", str(tiny_captioner), "--config", str(config), *ONE)
    done = client.run("submit", *caption(photos, output, *more))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 of 12 images (100%)" in done.stdout
    assert "shared storage" in done.stderr
    rows = read_rows(output)
    assert len(rows) == 12
    assert all(row["status"] == "ok" and row["caption"] for row in rows.values())

    job = job_of(done.stderr)
    told = client.run("status", job).stdout
    assert re.search(r"state +succeeded after ", told)
    assert re.search(r"progress +12 of 12 images", told)
    assert job in client.run("list").stdout
    assert client.machines.token not in done.stdout + done.stderr + told


@pytest.mark.slow
def test_a_job_that_was_stopped_goes_on_when_submitted_again(client: Client, tmp_path: Path) -> None:
    client.machines.add(cpus=2)  # its package is unpacked in a place of its own
    photos, output = write_photos(tmp_path / "photos", 400), tmp_path / "out"
    given = caption(photos, output, "--set", "output.shard_size=8", "--set", "decoding.beam_size=8")
    with client.start("submit", *given) as process:
        assert process.stderr is not None
        staging = output / "_run" / "staging"
        until = time.monotonic() + 200
        while not (staging.is_dir() and len(list(staging.glob("*.parquet"))) > 1):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < until
            time.sleep(0.1)
        # Ctrl-C on the watching command does not affect the job.
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    job = job_of(told)
    assert f"Job {job} continues." in told
    assert re.search(r"state +running", client.run("status", job).stdout)

    watching = client.start("logs", "-f", job)
    stopped = client.run("stop", job)
    assert stopped.returncode == 0, stopped.stderr
    assert f"Job {job} was stopped" in stopped.stderr
    log, told = watching.communicate(timeout=60)
    assert watching.returncode == 130
    assert "Interrupted." in log
    finished = len(list(staging.glob("*.parquet")))
    assert 0 < finished < 50

    again = client.run("submit", *given)
    assert again.returncode == 0, again.stdout + again.stderr
    assert re.search(r"captioned, [\d,]+ already done", again.stdout)
    assert "nothing to send" in again.stderr
    assert len(read_rows(output)) == 400


@pytest.mark.slow
def test_exit_codes_arrive(client: Client, tiny_captioner: Path, tmp_path: Path) -> None:
    # 2: what only the cluster can see is wrong. 1: photos that cannot be read.
    assert client.run("submit", *caption(tmp_path / "none", tmp_path / "out")).returncode == 2
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.jpg").write_bytes(b"no picture")
    done = client.run("submit", *caption(bad, tmp_path / "bad-out", "--model", str(tiny_captioner), *ONE))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "max_fraction" in done.stdout
