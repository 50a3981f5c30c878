"""`start_share`: the stage's initial weights are averaged into what is validated and saved."""

from pathlib import Path

import pytest
import torch

from captioning.data.shards import ShardSet
from tests.captioning.training.runs import assert_same, best_of_stage, recipe, run_with_scores, start, weights
from tests.tiny import write_tiny_shards

SETTINGS = ("epochs=2", "optim.start_share=0.75", "optim.ema_decay=null")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), {"train": 12, "val": 4})


def test_three_quarters_are_as_they_were(shards: ShardSet, tmp_path: Path) -> None:
    run = run_with_scores(recipe(*SETTINGS), shards, tmp_path, {3: 1.0, 6: 2.0})
    began, learned = run.at_start[0], weights(run)
    saved = best_of_stage(tmp_path, 0)
    trained = {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    assert_same(
        {name: saved[name] for name in trained},
        {name: 0.25 * learned[name] + 0.75 * began[name] for name in trained},
    )
    assert any(not torch.allclose(began[name], learned[name]) for name in trained)
    # The average was validated, and training went on from the trained weights.
    validated = run.validated[6]
    assert_same({name: validated[name] for name in trained}, {name: saved[name] for name in trained})


def test_a_resumed_run_knows_what_it_began_with(shards: ShardSet, tmp_path: Path) -> None:
    alone = start(recipe(*SETTINGS), shards, tmp_path / "alone")
    alone.run()
    start(recipe(*SETTINGS), shards, tmp_path / "stopped").run(stop_at=4)
    start(recipe(*SETTINGS), shards, tmp_path / "stopped").run()
    assert_same(best_of_stage(tmp_path / "stopped", 0), best_of_stage(tmp_path / "alone", 0))
