"""`compile`: torch.compile does not change what a model learns."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from captioning.captioner import load_captioner
from captioning.data.shards import ShardSet
from captioning.errors import SettingsError
from tests.captioning.training.runs import CLIP_STAGES, RECIPE, recipe, start, weights
from tests.tiny import write_tiny_shards

CLIP = CLIP_STAGES.partition("stages:")[0].replace("feature_cache: auto", "epochs: 1")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 9, "val": 3})


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Records the compiled graphs and runs them eagerly, so that no C++ compiler is needed."""
    found: list[Any] = []

    def backend(graph: Any, _: Any) -> Callable[..., Any]:
        found.append(graph)
        return graph.forward  # type: ignore[no-any-return]

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **more: compiled(*args, **more, backend=backend))
    yield found
    torch.compiler.reset()


@pytest.mark.parametrize(
    "text", [pytest.param(RECIPE, id="lstm"), pytest.param(CLIP, id="clip_gpt2", marks=pytest.mark.slow)]
)
def test_a_compiled_model_learns_the_same(shards: ShardSet, tmp_path: Path, graphs: list[Any], text: str) -> None:
    runs = {}
    for compiled in ("false", "true"):
        settings = recipe("epochs=1", "log_every_steps=1", f"compile={compiled}", text=text)
        runs[compiled] = start(settings, shards, tmp_path / compiled)
        runs[compiled].run()
        assert bool(graphs) == (compiled == "true")
    # Decoding is not compiled: its shapes change with every token.
    nodes = [node for graph in graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert len(nodes) > 20
    plain, compiled_ones = (
        [record for record in run.progress.history if record["kind"] != "note"] for run in runs.values()
    )
    assert [r["step"] for r in plain] == [r["step"] for r in compiled_ones]
    for one, other in zip(plain, compiled_ones, strict=True):
        for figure in {"loss", "gradient_norm"} & one.keys():
            assert other[figure] == pytest.approx(one[figure], rel=1e-3)
    for name, value in weights(runs["false"]).items():
        torch.testing.assert_close(weights(runs["true"])[name], value, rtol=1e-2, atol=1e-3)
    # Saved weights have their original names.
    names = [set(load_file(tmp_path / name / "best" / "model.safetensors")) for name in runs]
    assert names[0] == names[1]
    assert load_captioner(str(tmp_path / "true" / "best"))


def test_it_does_not_go_with_fsdp() -> None:
    with pytest.raises(SettingsError, match="compile and fsdp cannot be combined"):
        recipe("compile=true", "fsdp=true")
