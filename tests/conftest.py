"""What many tests share: a tiny captioner on disk, and one local Ray for the whole session."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell's background job ignores Ctrl-C, and so would what it starts. Tests that send it are in the foreground.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: Tests know no network, no cluster and no hub.
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint's folder: a CNN-LSTM of random weights that captions in milliseconds."""
    from tests.tiny import save_tiny_captioner

    return save_tiny_captioner(tmp_path_factory.mktemp("captioner") / "tiny")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of two CPUs on this machine, shared by every test that asks for it."""
    import ray

    from jobs.ray_session import start_local

    start_local(num_cpus=2, object_store_memory=150 * 1024**2)
    yield
    ray.shutdown()
