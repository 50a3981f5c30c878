"""Shared fixtures: a tiny captioner on disk, one local Ray per session, and the grouping of tests for xdist."""

import gc
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and so would its children; tests that send it need the default handler.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Tests use no network, no cluster and no hub.
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
#: As in the Makefile: with a thread per core in each process, tests that run side by side take several times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 2` files run in parallel; a file's tests stay together, and so do all files that share the Ray."""
    on_ray = {item.path for item in items if "ray_local" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if item.path in on_ray else item.path.stem))
    # Long files first, so that none of them runs alone at the end; the library's own tests are short.
    library = Path(__file__).parent / "captioning"
    items.sort(key=lambda item: (item.path not in on_ray, library in item.path.parents))


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder: a CNN-LSTM of random weights that captions in milliseconds."""
    from tests.tiny import save_tiny_captioner

    return save_tiny_captioner(tmp_path_factory.mktemp("captioner") / "tiny")


@pytest.fixture(scope="session")
def _one_ray() -> Iterator[None]:
    import ray

    from jobs.ray_session import start_local

    start_local(num_cpus=2, object_store_memory=150 * 1024**2)
    yield
    ray.shutdown()


@pytest.fixture
def ray_local(_one_ray: None) -> Iterator[None]:
    """A Ray of two CPUs on this machine, shared by every test that asks for it, and left idle afterwards.

    Ray Data ends its actors when nothing refers to them any more. An error's traceback may, until Python collects
    such cycles; a later test that waits for both CPUs could then wait for ever.
    """
    import ray

    yield
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the test left something at work on the Ray that all tests share"
        gc.collect()
        time.sleep(0.2)
