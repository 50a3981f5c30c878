"""Captioning on an autoscaling cluster: Ray's own autoscaler, over simulated machines."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.machines import ROOT, free_port
from tests.cluster.rehearsal import PACE, Job, run_here
from tests.jobs.archive import write_photos
from tests.jobs.test_caption import descendants

PHOTOS, SHARD_SIZE, SECONDS = 360, 2, 1.0
#: The head's id for the provider of simulated machines.
HEAD = "f" * 51 + "00000"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def configuration(port: int) -> dict[str, Any]:
    """Always one machine with a GPU, and two more on request."""
    nothing = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
    return {
        "cluster_name": "rehearsed",
        "max_workers": 3,
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": 0.25,
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "launch_multiple": True,
            "head_node_id": HEAD,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 0},
            "gpu": {"resources": {"CPU": 2, "GPU": 1}, "node_config": {}, "min_workers": 1, "max_workers": 3},
        },
        "head_node_type": "ray.head.default",
        "auth": {"ssh_user": "nobody"},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        **{name: [] for name in nothing},
    }


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a driver on an autoscaling cluster."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "CHAOS_"))}
    port = free_port()
    chosen = {
        **inherited,
        "PYTHONPATH": os.pathsep.join([str(PACE), str(ROOT)]),
        "PACE_FOLDER": str(tmp_path),
        "PACE_SECONDS": str(SECONDS),
        "PACE_IDLE": "1",
        "OMP_NUM_THREADS": "1",
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_ADDRESS": f"127.0.0.1:{port}",
    }
    autoscaler = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }
    (tmp_path / "cluster.yaml").write_text(json.dumps(configuration(port)))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=1"]
    command += [f"--port={port}", f"--dashboard-port={free_port()}", f"--ray-client-server-port={free_port()}"]
    command += [f"--autoscaling-config={tmp_path / 'cluster.yaml'}", "--object-store-memory=100000000"]
    with tempfile.TemporaryDirectory(prefix="as", dir="/tmp", ignore_cleanup_errors=True) as folder:
        head = subprocess.Popen(
            [*command, f"--temp-dir={folder}"],
            env={key: value for key, value in (chosen | autoscaler).items() if key != "RAY_ADDRESS"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            wait_for_gpus(chosen, 1)
            yield chosen
        finally:
            for process in [*descendants(head.pid), head.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            head.wait()


def wait_for_gpus(environment: dict[str, str], count: int, seconds: float = 240) -> None:
    """Return when the cluster has `count` GPUs."""
    program = (
        "import ray, sys; ray.init(log_to_driver=False); "
        "sys.exit(ray.cluster_resources().get('GPU', 0) != float(sys.argv[1]))"
    )
    until = time.monotonic() + seconds
    while subprocess.run([sys.executable, "-c", program, str(count)], env=environment, capture_output=True).returncode:
        assert time.monotonic() < until, f"there are not {count} GPUs"
        time.sleep(1)


def test_a_cluster_grows_for_a_run_and_shrinks_after_it(environment: dict[str, str], tmp_path: Path) -> None:
    photos, output = write_photos(tmp_path / "photos", PHOTOS), tmp_path / "out"
    command = [sys.executable, "-m", "jobs", "caption", str(photos), "-o", str(output)]
    for setting in (f"output.shard_size={SHARD_SIZE}", "runtime.runner=ray", "runtime.max_actors=3"):
        command += ["--set", setting]
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    code, said = Job(subprocess.Popen(command, env=environment, cwd=ROOT, **options)).end()
    assert code == 0, said
    assert "1 captioner with 1 GPU each" in said
    assert "Requesting room for 2 more captioners from the cluster." in said
    assert "The cluster has grown: continuing with 3 captioners" in said, said
    run_here(["verify", output])
    events = [json.loads(line)["event"] for line in (output / "_run" / "events.jsonl").read_text().splitlines()]
    assert "asked" in events
    assert events.count("node_joined") >= 2
    wait_for_gpus(environment, 1)
