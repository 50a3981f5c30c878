"""The best checkpoint of a run: written whenever the validation score improves, its decoding chosen at the end.

After a kill at any time, `OUTPUT/best` is a complete checkpoint or recognisably none (missing, or without
its `config.json`), and the resumed run repairs that.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from captioning.captioner import Captioner
from captioning.config import to_dict
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import load_tokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.models.checkpoint import load_model, save_checkpoint
from captioning.models.checkpoint_config import CARD, CONFIG, read_config
from captioning.storage import Location
from captioning.training.card import model_card, recipe, with_decoding_table
from captioning.training.decoding_search import search_record
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.state import Progress

BEST = "best"

#: A decoding and its scores on the validation split.
ScoredDecoding = tuple[DecodingSettings, Mapping[str, float]]


class BestCheckpoint:
    """Writes and reads `OUTPUT/best`."""

    def __init__(self, settings: TrainSettings, shards: ShardSet, output: Location, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._data = {"dataset": shards.dataset, "images": shards.counts}
        self._place = output / BEST
        # Local folders that exist only while a checkpoint is being replaced.
        self._new, self._old = output / f".{BEST}-new", output / f".{BEST}-old"
        self._name = Path(output.name).name or "captioner"

    def recover(self) -> bool:
        """Finish or undo an interrupted replacement. Returns whether there is a checkpoint."""
        if self._place.is_local:
            if not self._place.exists() and self._old.exists() and self._new.exists():
                os.rename(self._new.local_path, self._place.local_path)
            for folder in (self._old, self._new):
                shutil.rmtree(folder.local_path, ignore_errors=True)
        return (self._place / CONFIG).exists()

    def write(
        self,
        stage: Stage,
        weights: Mapping[str, Tensor],
        progress: Progress,
        scores: Mapping[str, float],
        samples: Sequence[tuple[str, str]],
    ) -> None:
        """Write the model of `stage` with `weights` and a model card. `samples` are (image key, caption) pairs."""
        settings, step = self._settings, progress.step
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(
                Path(folder),
                stage.model,
                self._parts.tokenizer,
                self._parts.preprocess,
                self._parts.decoding,
                weights=weights,
                provenance={
                    "data": self._data,
                    "stage": stage.settings.name,
                    "step": step,
                    "images_seen": progress.images_seen,
                    "validation": dict(scores),
                    "settings": recipe(settings),
                },
                card=model_card(self._name, settings, self._parts, self._data, scores, samples, step=step),
                dtype=settings.save_dtype,
            )
            self._replace(Path(folder))

    def load(self, device: torch.device, precision: Literal["fp32", "bf16"]) -> Captioner:
        """The best checkpoint as a captioner."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._place.download(folder)
            config, tokenizer = read_config(folder), load_tokenizer(folder)
            model = load_model(folder, config, tokenizer).to(device).requires_grad_(False)
        return Captioner(model, tokenizer, config.preprocess, config.decoding, precision=precision)

    def has_chosen_decoding(self) -> bool:
        """Whether `choose_decoding` has finished for this checkpoint."""
        return "decoding_search" in self._config()["provenance"]

    def choose_decoding(self, tried: Sequence[ScoredDecoding]) -> None:
        """Make the first of `tried` the checkpoint's default decoding, and record the scores of all."""
        config = self._config()
        config["decoding"] = to_dict(tried[0][0])
        config["provenance"]["decoding_search"] = search_record(tried)
        card = self._place / CARD
        # The config goes last, as it marks the choice as done. After a kill in between, the card's table is replaced.
        card.write_text(with_decoding_table(card.read_text(), tried))
        (self._place / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _config(self) -> dict[str, Any]:
        config: dict[str, Any] = json.loads((self._place / CONFIG).read_text())
        return config

    def _replace(self, folder: Path) -> None:
        """Replace the checkpoint by the files in `folder`."""
        if not self._place.is_local:
            # Objects without a config are no checkpoint, so new weights are never read with an old config.
            (self._place / CONFIG).delete()
            _copy(folder, self._place)
            return
        self.recover()
        _copy(folder, self._new)
        if self._place.exists():
            os.rename(self._place.local_path, self._old.local_path)
        os.rename(self._new.local_path, self._place.local_path)
        shutil.rmtree(self._old.local_path, ignore_errors=True)


def _copy(folder: Path, place: Location) -> None:
    # The config goes last: it makes the folder a checkpoint.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
        (place / path.name).write_bytes(path.read_bytes())
