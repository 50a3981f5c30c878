"""The model card that a training run writes beside its best checkpoint: facts, no praise."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from captioning.config import to_dict
from captioning.decoding.settings import DecodingSettings
from captioning.training.settings import TrainSettings


def recipe(settings: TrainSettings) -> dict[str, Any]:
    """The settings as plain values, without where the data were: that is nobody else's business."""
    return {key: value for key, value in to_dict(settings).items() if key not in ("data", "text", "storage")}


def decoding_table(tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]]) -> str:
    """The decodings that were tried on the validation split, best first, for the card."""
    lines = ["**Decoding**, chosen on the validation split (the first is the default):", ""]
    lines += [
        "| beams | length penalty | repetition penalty | no repeated run of | CIDEr-D | BLEU-4 |",
        "|" + "---|" * 6,
    ]
    lines += [
        f"| {d.beam_size} | {d.length_penalty:g} | {d.repetition_penalty:g} | {d.no_repeat_ngram_size or '–'} "
        f"| {scores['cider_d']:.1f} | {scores['bleu_4']:.1f} |"
        for d, scores in tried
    ]
    return "\n".join(lines) + "\n"


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
