"""The bundled captioners, fine-tuned with the recipe for own photos, learn a toy world."""

import time
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
from captioning.training.validation import caption_split
from tests.toy_world import write_world

RECIPE = Path(__file__).parents[3] / "configs" / "train" / "fine-tune.yaml"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", bundled_names())
def test_a_bundled_captioner_learns_the_toy_world(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = write_world(tmp_path / "world", {"train": 600, "val": 40, "test": 200})
    before = exact_share(load_captioner(name, device="cpu"), shards)
    settings = read_settings(TrainSettings, RECIPE.read_text(), [f"init={name}"])
    began, of_cpu = time.perf_counter(), time.process_time()
    parts = make_parts(settings, make_tokenizer(settings, shards), shards)
    progress = TrainingRun(settings, parts, shards, Location.parse(str(tmp_path / "run"))).run()
    seconds, of_cpu = time.perf_counter() - began, time.process_time() - of_cpu
    after = exact_share(load_captioner(str(tmp_path / "run" / "best"), device="cpu"), shards)
    with capsys.disabled():
        print(
            f"\n{name}: {before:.1%} of unseen pictures exact before, {after:.1%} after {progress.step:,} steps "
            f"(best: {progress.best_step:,}) in {seconds:.0f} s, {of_cpu:.0f} s of a core"
        )
    assert before <= 0.01
    assert after >= 0.9


def exact_share(captioner: Captioner, shards: ShardSet) -> float:
    """The share of unseen pictures with an exactly correct caption."""
    described = caption_split(captioner, shards, "test", batch_size=50)
    assert len(described) == 200
    return sum(each.caption.text == each.references[0] for each in described) / len(described)
