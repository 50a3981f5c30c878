"""The weighted average of checkpoints: one captioner from several of one architecture and one vocabulary.

Weights fine-tuned from the same start lie in one basin of the loss, and their mean is often better
than each (Wortsman et al. 2022, "Model soups"); the mean of a model before and after fine-tuning
keeps what each is good at ("Robust fine-tuning of zero-shot models", WiSE-FT). The mean of runs that
started from different random weights is useless.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from torch import Tensor

from captioning.config import to_dict
from captioning.data.tokenizers import load_tokenizer
from captioning.errors import CheckpointError, SettingsError
from captioning.models.checkpoint import load_model, save_checkpoint
from captioning.models.checkpoint_config import WEIGHTS, CheckpointConfig, hash_files, read_config

#: Settings that affect only training: they may differ, and the first checkpoint's are kept.
_TRAINING_ONLY = frozenset(
    ("dropout", "feature_dropout", "attention_penalty", "tune_from", "train", "weights", "gradient_checkpointing")
)


@dataclass(frozen=True)
class Source:
    """A checkpoint to be averaged."""

    name: str
    folder: Path
    weight: float


def average_checkpoints(
    sources: Sequence[Source],
    folder: Path,
    *,
    name: str = "average",
    dtype: Literal["float32", "float16"] = "float32",
) -> None:
    """Write to `folder` the captioner whose weights are the weighted mean of the sources'.

    Tokenizer, preprocessing and decoding are the first source's, as are counters (integer tensors).
    Sums are in float64. Raises `CheckpointError` for checkpoints that do not match, `SettingsError`
    for invalid averaging weights.
    """
    shares = _shares(sources)
    configs = [read_config(source.folder) for source in sources]
    hashes = [hash_files(source.folder) for source in sources]
    for source, config, files in zip(sources[1:], configs[1:], hashes[1:], strict=True):
        _check_match(sources[0], configs[0], hashes[0], source, config, files)
    tokenizer = load_tokenizer(sources[0].folder)
    model = load_model(sources[0].folder, configs[0], tokenizer)
    total: dict[str, Tensor] = {}
    for source, config, share in zip(sources, configs, shares, strict=True):
        state = load_model(source.folder, config, tokenizer).state_dict()
        for key, value in state.items():
            if not value.is_floating_point():
                total.setdefault(key, value)
            elif key in total:
                _check_shape(key, total[key], value, sources[0], source)
                total[key] += share * value.double()
            else:
                total[key] = share * value.double()
    weights = {key: value.float() if value.is_floating_point() else value for key, value in total.items()}
    provenance = [
        {
            "name": source.name,
            "share": share,
            "weights_sha256": files[WEIGHTS],
            "provenance": dict(config.provenance),
        }
        for source, share, config, files in zip(sources, shares, configs, hashes, strict=True)
    ]
    save_checkpoint(
        folder,
        model,
        tokenizer,
        configs[0].preprocess,
        configs[0].decoding,
        weights=weights,
        provenance={"average": provenance},
        card=_card(name, configs[0], provenance),
        dtype=dtype,
    )


def _shares(sources: Sequence[Source]) -> list[float]:
    if len(sources) < 2:
        raise SettingsError(f"An average needs at least two checkpoints, not {len(sources)}.")
    weights = [source.weight for source in sources]
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not total > 0:
        raise SettingsError(f"The weights of an average must be 0 or more and not all 0, not {weights}.")
    return [weight / total for weight in weights]


def _check_match(
    first: Source,
    config: CheckpointConfig,
    files: Mapping[str, str],
    other: Source,
    other_config: CheckpointConfig,
    other_files: Mapping[str, str],
) -> None:
    where = f"{other.name} cannot be averaged with {first.name}"
    one, two = (_structure(to_dict(each.architecture)) for each in (config, other_config))
    if one != two:
        keys = sorted(key for key in one.keys() | two.keys() if one.get(key) != two.get(key))
        differences = ", ".join(f"{key} ({two.get(key)!r}, not {one.get(key)!r})" for key in keys[:5])
        raise CheckpointError(f"{where}: their architectures differ in {differences}.")
    if config.preprocess != other_config.preprocess:
        raise CheckpointError(f"{where}: their preprocessing differs. Average checkpoints of one recipe.")
    tokenizers = [{key: value for key, value in each.items() if key != WEIGHTS} for each in (files, other_files)]
    if tokenizers[0] != tokenizers[1]:
        raise CheckpointError(
            f"{where}: their tokenizers differ, so that a token stands for different words. "
            "Train one from the other (init=REF) with tokenizer.extend=false, which keeps the words."
        )


def _structure(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings that affect what the model computes, flattened to dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in _TRAINING_ONLY:
            continue
        if isinstance(value, Mapping):
            flat |= _structure(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _check_shape(key: str, ours: Tensor, theirs: Tensor, first: Source, other: Source) -> None:
    if ours.shape != theirs.shape:
        raise CheckpointError(
            f"{other.name} cannot be averaged with {first.name}: {key} is {tuple(theirs.shape)}, "
            f"not {tuple(ours.shape)}."
        )


def _card(name: str, config: CheckpointConfig, parts: Sequence[Mapping[str, Any]]) -> str:
    kind = config.architecture.kind
    front = yaml.safe_dump(
        {"library_name": "captioning", "pipeline_tag": "image-to-text", "tags": [kind]}, sort_keys=False
    )
    rows = "\n".join(f"| {part['name']} | {part['share']:.3g} | `{part['weights_sha256'][:12]}` |" for part in parts)
    return f"""---
{front}---

# {name}

An image captioner ({kind}): the weighted average of {len(parts)} checkpoints, made with `python -m jobs average`.

| checkpoint | share | SHA-256 of its weights |
|---|---|---|
{rows}

Vocabulary, preprocessing and decoding are those of the first. How each was trained, and on what data, is in
`config.json` under `provenance.average`; their terms apply to the average too. It has no scores of its own until it
is evaluated: `python -m jobs evaluate --model FOLDER --data SHARDS`.

```python
from captioning import load_captioner
load_captioner("FOLDER").caption(["photo.jpg"])
```
"""
