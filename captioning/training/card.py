"""The model card that a training run writes into its best checkpoint."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from captioning.config import to_dict
from captioning.decoding.settings import DecodingSettings
from captioning.training.parts import Parts
from captioning.training.settings import TrainSettings

#: The heading of the table of decodings.
_DECODING = "**Decoding**, chosen on the validation split (the first is the default):"


def recipe(settings: TrainSettings) -> dict[str, Any]:
    """The settings as plain values, without the locations of the data, which may be private."""
    left_out = {"data", "text", "storage"} | ({"model", "preprocess"} if settings.init is not None else {"init"})
    return {key: value for key, value in to_dict(settings).items() if key not in left_out}


def with_decoding_table(card: str, tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]]) -> str:
    """`card` with a table of the decodings tried on the validation split at its end, replacing an earlier one."""
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
    """A model card in Hugging Face's format. `samples` are (image key, caption) of validation images."""
    kind = parts.model.settings.kind
    about = {"library_name": "captioning", "pipeline_tag": "image-to-text", "tags": [kind]}
    how = "trained"
    if settings.init is not None:
        about["base_model"] = settings.init
        how = f"fine-tuned from `{settings.init}` (whose terms continue to apply)"
    front = yaml.safe_dump(about, sort_keys=False)
    counts = ", ".join(f"{count:,} {split}" for split, count in data["images"].items())
    rows = "\n".join(f"| {metric} | {value:.1f} |" for metric, value in scores.items())
    captions = "\n".join(f"- `{key}`: {caption}" for key, caption in samples)
    return f"""---
{front}---

# {name}

An image captioner ({kind}), {how} with `python -m jobs train`.

**Data.** {data["dataset"]}: {counts} images, split by image. Before you share this captioner, state here the
terms under which the photos and captions were obtained.

**Scores** on `{settings.validation.split}`, by which this checkpoint was selected, at step {step:,}
(beam size {settings.validation.beam_size or parts.decoding.beam_size}):

| metric | value |
|---|---|
{rows}

**Captions** of validation images, not selected:

{captions or "(none)"}

**Use.**

```python
from captioning import load_captioner
load_captioner("FOLDER").caption(["photo.jpg"])
```

**Recipe.**

```yaml
{yaml.safe_dump(recipe(settings), sort_keys=False)}```
"""
