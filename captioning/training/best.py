"""The best checkpoint of a run: written whenever validation gets better, its decoding chosen at the end."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from captioning.captioner import Captioner
from captioning.config import to_dict
from captioning.data.shards import ShardSet
from captioning.data.tokenizers import load_tokenizer
from captioning.decoding.settings import DecodingSettings
from captioning.models.checkpoint import CARD, CONFIG, load_model, read_config, save_checkpoint
from captioning.storage import Location
from captioning.training.card import decoding_table, model_card, recipe
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings
from captioning.training.stage import Stage
from captioning.training.state import Progress

BEST = "best"

#: A decoding and what the validation split's captions scored with it.
Tried = tuple[DecodingSettings, Mapping[str, float]]


class BestWriter:
    """Writes and reads `OUTPUT/best`."""

    def __init__(self, settings: TrainSettings, shards: ShardSet, output: Location, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._data = {"dataset": shards.dataset, "images": shards.counts}
        self._place = output / BEST
        self._name = Path(output.name).name or "captioner"

    def write(
        self, stage: Stage, progress: Progress, scores: Mapping[str, float], samples: Sequence[tuple[str, str]]
    ) -> None:
        """Write the model as it stands in `stage`, with a card. `samples` are image keys with captions."""
        settings, step = self._settings, progress.step
        with tempfile.TemporaryDirectory() as folder:
            save_checkpoint(
                Path(folder),
                stage.model,
                self._parts.tokenizer,
                self._parts.preprocess,
                settings.decoding,
                provenance={
                    "data": self._data,
                    "stage": stage.settings.name,
                    "step": step,
                    "images_seen": progress.images_seen,
                    "validation": dict(scores),
                    "settings": recipe(settings),
                },
                card=model_card(self._name, settings, self._data, scores, samples, step=step),
                dtype=settings.save_dtype,
            )
            self._put(Path(folder))

    def load(self, device: torch.device, precision: Literal["fp32", "bf16"]) -> Captioner:
        """The best checkpoint as a captioner."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            self._place.download(folder)
            config, tokenizer = read_config(folder), load_tokenizer(folder)
            model = load_model(folder, config, tokenizer).to(device).requires_grad_(False)
        return Captioner(model, tokenizer, config.preprocess, config.decoding, precision=precision)

    def choose_decoding(self, tried: Sequence[Tried]) -> None:
        """Make the first of `tried` the checkpoint's default decoding, and write down what all of them scored."""
        config: dict[str, Any] = json.loads((self._place / CONFIG).read_text())
        config["decoding"] = to_dict(tried[0][0])
        rows = [{"decoding": to_dict(decoding), "validation": dict(scores)} for decoding, scores in tried]
        config["provenance"]["decoding_search"] = rows
        card = (self._place / CARD).read_text()
        (self._place / CARD).write_text(card.rstrip() + "\n\n" + decoding_table(tried))
        (self._place / CONFIG).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")

    def _put(self, folder: Path) -> None:
        # What makes it a checkpoint comes last.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == CONFIG):
            (self._place / path.name).write_bytes(path.read_bytes())
