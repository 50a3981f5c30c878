"""The model card that a training run writes beside its best checkpoint: facts, no praise."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from captioning.config import to_dict
from captioning.training.settings import TrainSettings


def recipe(settings: TrainSettings) -> dict[str, Any]:
    """The settings as plain values, without where the data were: that is nobody else's business."""
    return {key: value for key, value in to_dict(settings).items() if key not in ("data", "storage")}


def model_card(
    name: str,
    settings: TrainSettings,
    data: Mapping[str, Any],
    scores: Mapping[str, float],
    samples: Sequence[tuple[str, str]],
    *,
    step: int,
) -> str:
    """A card in the Hugging Face manner. `samples` are (image key, caption) of validation images."""
    front = yaml.safe_dump(
        {"library_name": "captioning", "pipeline_tag": "image-to-text", "tags": [settings.model.kind]},
        sort_keys=False,
    )
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    rows = "\n".join(f"| {metric} | {value:.1f} |" for metric, value in scores.items())
    said = "\n".join(f"- `{key}`: {caption}" for key, caption in samples)
    return f"""---
{front}---

# {name}

An image captioner ({settings.model.kind}), trained with `python -m jobs train`.

**Data.** {data["dataset"]}: {counts} images, split by image. A captioner that is given to others should say
here under which terms the photos and captions were had.

**Scores** on `{settings.validation.split}` at step {step:,}, on which this checkpoint was chosen
(beam size {settings.validation.beam_size or settings.decoding.beam_size}):

| metric | value |
|---|---|
{rows}

**Captions** of validation images, as they came:

{said or "(none)"}

**Use.**

```python
from captioning import load_captioner
load_captioner("FOLDER").caption(["photo.jpg"])
```

**Recipe.**

```yaml
{yaml.safe_dump(recipe(settings), sort_keys=False)}```
"""
