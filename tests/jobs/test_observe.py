"""Observing a run on Ray: its metrics in Prometheus' format, and the reports of stalls."""

import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from captioning.data.preprocess import PreprocessSettings
from captioning.errors import UnfinishedError
from captioning.run.index import write_segment
from captioning.run.layout import RunLayout
from captioning.run.shard_io import IndexShardIO
from captioning.run.sources import open_sources
from captioning.storage import Location, StorageSettings
from jobs.caption_settings import RuntimeSettings
from jobs.runners.metrics import COUNTERS, GAUGES
from jobs.runners.observe import RayObserver, node_loads
from jobs.runners.pipeline import caption_shards, cluster_nodes
from jobs.runners.pools import plan_pools
from jobs.runners.work import ShardResult, Work
from tests.jobs.archive import write_photos
from tests.jobs.captioners import Moody

pytestmark = pytest.mark.usefixtures("ray_local")


def scraped() -> str:
    port = next(node["MetricsExportPort"] for node in ray.nodes() if node["Alive"])
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        return answer.read().decode()


def test_a_dashboard_reads_what_a_run_did() -> None:
    pools = plan_pools(RuntimeSettings(), cluster_nodes(), shards=5)
    stages = {"fetch": 1.0, "decode": 2.0, "model": 30.0, "write": 0.0}
    with RayObserver("memory://odd run", pools, lambda text: None, lambda kind, **fields: None) as observer:
        for number in range(3):
            result = ShardResult(number, 10, {"corrupt": 2} if number else {}, stages)
            observer.shard_finished(result, images=20, shards=2, rate=1.5)
        wanted = {*(f"ray_{name}_total" for name in COUNTERS), *(f"ray_{name}" for name in GAUGES)}
        for _ in range(120):
            text = scraped()
            if all(f"{name}{{" in text for name in wanted):
                break
            time.sleep(0.5)
        lines = [line for line in text.splitlines() if 'run="memory://odd run"' in line or "odd_run" in line]
    values = {line.split("{")[0]: float(line.rsplit(" ", 1)[1]) for line in lines if "stage=" not in line}
    assert values["ray_captioning_images_total"] == 30
    assert values["ray_captioning_errors_total"] == 4
    assert values["ray_captioning_shards_total"] == 3
    assert values["ray_captioning_pending_images"] == 20
    assert values["ray_captioning_captioners"] == pools.actors
    assert any('stage="model"' in line and float(line.rsplit(" ", 1)[1]) == 90 for line in lines)


def test_the_nodes_and_what_is_free_of_them() -> None:
    (node,) = node_loads()
    assert node.cpus == 2
    assert 0 <= node.free_cpus <= 2


@pytest.mark.parametrize(
    ("asked", "told"), [({"cpus_per_actor": 64.0}, "64 CPU"), ({"gpus_per_actor": 1.0}, "0.5 CPU and 1 GPU")]
)
def test_a_run_without_resources_ends_and_says_what_it_requests(
    asked: dict[str, float], told: str, tmp_path: Path
) -> None:
    layout = RunLayout(Location.parse(str(tmp_path / "out")))
    index = write_segment(layout, open_sources([str(write_photos(tmp_path / "photos", 2))]), shard_size=2).commit()
    work = Work(IndexShardIO(index), PreprocessSettings(size=8), StorageSettings(), Moody(), max_retries=1, stall_s=3)
    pools = replace(plan_pools(RuntimeSettings(actors=1), cluster_nodes(), shards=1), **asked)
    with pytest.raises(UnfinishedError, match=rf"(?s)No progress for 3 s.*requests {told}.*No node is large enough"):
        list(caption_shards(work, pools, [shard.number for shard in index.shards()]))
