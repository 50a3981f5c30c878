"""Every recipe in configs/ is accepted by its verb."""

from pathlib import Path

import pytest

from captioning.config import read_settings
from captioning.errors import SettingsError
from captioning.training.settings import TrainSettings
from jobs.caption_settings import read_caption_settings

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("train/*.yaml")), ids=lambda path: path.name)
def test_train_recipes(path: Path) -> None:
    read_settings(TrainSettings, path.read_text(), where=path.name)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("caption/*.yaml")), ids=lambda path: path.name)
def test_caption_presets(path: Path) -> None:
    read_caption_settings(path, [])


def test_every_folder_has_recipes() -> None:
    assert {path.parent.name for path in CONFIGS.glob("*/*.yaml")} == {"train", "caption"}


@pytest.mark.parametrize("other", ["runtime.device=cuda", "runtime.encoder=eager", "runtime.encoder=compile"])
def test_int8_is_refused_where_it_cannot_be(other: str) -> None:
    read_caption_settings(None, ["runtime.precision=int8"])
    with pytest.raises(SettingsError, match="int8"):
        read_caption_settings(None, ["runtime.precision=int8", other])
