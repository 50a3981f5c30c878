"""The model card that a training run writes beside its best checkpoint: facts, no praise."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from captioning.config import to_dict
from captioning.decoding.settings import DecodingSettings
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings

#: What the table of decodings begins with.
_DECODING = "**Decoding**, chosen on the validation split (the first is the default):"


def recipe(settings: TrainSettings) -> dict[str, Any]:
    """The settings that were used, as plain values, without where the data were: that is nobody else's business."""
    left_out = {"data", "text", "storage"} | ({"model", "preprocess"} if settings.init is not None else {"init"})
    return {key: value for key, value in to_dict(settings).items() if key not in left_out}


def with_decoding_table(card: str, tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]]) -> str:
    """`card`, at its end the decodings tried on the validation split, best first, in place of such a table."""
    lines = [card.partition(_DECODING)[0].rstrip(), "", _DECODING, ""]
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
    parts: Parts,
    data: Mapping[str, Any],
    scores: Mapping[str, float],
    samples: Sequence[tuple[str, str]],
    *,
    step: int,
) -> str:
    """A card in the Hugging Face manner. `samples` are (image key, caption) of validation images."""
    kind = parts.model.settings.kind
    about = {"library_name": "captioning", "pipeline_tag": "image-to-text", "tags": [kind]}
    how = "trained"
    if settings.init is not None:
        about["base_model"] = settings.init
        how = f"trained on from `{settings.init}` (whose terms go on to hold)"
    front = yaml.safe_dump(about, sort_keys=False)
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    rows = "\n".join(f"| {metric} | {value:.1f} |" for metric, value in scores.items())
    said = "\n".join(f"- `{key}`: {caption}" for key, caption in samples)
    return f"""---
{front}---

# {name}

An image captioner ({kind}), {how} with `python -m jobs train`.

**Data.** {data["dataset"]}: {counts} images, split by image. A captioner that is given to others should say
here under which terms the photos and captions were had.

**Scores** on `{settings.validation.split}` at step {step:,}, on which this checkpoint was chosen
(beam size {settings.validation.beam_size or parts.decoding.beam_size}):

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
