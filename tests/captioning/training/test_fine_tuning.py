"""The bundled captioners, fine-tuned by the recipe for one's own photos, learn a world that they have never seen."""

from pathlib import Path

import pytest

from captioning.captioner import Captioner, load_captioner
from captioning.config import read_settings
from captioning.data.shards import ShardSet
from captioning.refs import bundled_names
from captioning.storage import Location
from captioning.training.loop import TrainingRun
from captioning.training.parts import make_parts, make_tokenizer
from captioning.training.settings import TrainSettings
from captioning.training.validation import describe
from tests.toy_world import write_world

RECIPE = Path(__file__).parents[3] / "configs" / "train" / "fine-tune.yaml"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["flickr-lstm", "flickr-clip-gpt2"])
def test_a_bundled_captioner_learns_the_toy_world(name: str, tmp_path: Path) -> None:
    if name not in bundled_names():
        pytest.skip(f"{name} is not bundled")
    shards = write_world(tmp_path / "world", {"train": 600, "val": 40, "test": 200})
    assert exact_share(load_captioner(name, device="cpu"), shards) <= 0.01
    settings = read_settings(TrainSettings, RECIPE.read_text(), [f"init={name}"])
    parts = make_parts(settings, make_tokenizer(settings, shards), shards)
    TrainingRun(settings, parts, shards, Location.parse(str(tmp_path / "run"))).run()
    best = load_captioner(str(tmp_path / "run" / "best"), device="cpu")
    assert exact_share(best, shards) >= 0.9


def exact_share(captioner: Captioner, shards: ShardSet) -> float:
    """The share of unseen pictures whose caption is right to the word."""
    described = describe(captioner, shards, "test", batch_size=50)
    assert len(described) == 200
    return sum(each.caption.text == each.references[0] for each in described) / len(described)
