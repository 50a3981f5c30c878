"""The weighted average of checkpoints: one captioner from several of one architecture and one vocabulary.

Weights that were fine-tuned from one start lie in one valley, and their mean is often better than
each (Wortsman et al. 2022, "Model soups"); that of a model before and after fine-tuning keeps
what each is good at ("Robust fine-tuning of zero-shot models", WiSE-FT). Of runs that started
from different random weights the mean says nothing. Knows checkpoints' folders, no data.
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

#: Settings of a model that say how it learns: they may differ, the first checkpoint's are kept.
_OF_LEARNING = frozenset(
    ("dropout", "feature_dropout", "attention_penalty", "tune_from", "train", "weights", "gradient_checkpointing")
)


@dataclass(frozen=True)
class Source:
    """A checkpoint that goes into the average."""

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
    """Write to `folder` the captioner whose every weight is the mean of the sources', by their shares of the weights.

    Words, preprocessing and decoding are the first source's, as are counts (tensors that are no
    floating point). Sums are taken in float64. Raises `CheckpointError` for checkpoints that do not
    go together, `SettingsError` for weights that are no shares.
    """
    shares = _shares(sources)
    configs = [read_config(source.folder) for source in sources]
    hashes = [hash_files(source.folder) for source in sources]
    for source, config, files in zip(sources[1:], configs[1:], hashes[1:], strict=True):
        _check_alike(sources[0], configs[0], hashes[0], source, config, files)
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
    parts = [
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
        provenance={"average": parts},
        card=_card(name, configs[0], parts),
        dtype=dtype,
    )


def _shares(sources: Sequence[Source]) -> list[float]:
    if len(sources) < 2:
        raise SettingsError(f"An average needs two checkpoints or more, and {len(sources)} was given.")
    weights = [source.weight for source in sources]
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not total > 0:
        raise SettingsError(f"The weights of an average must be 0 or more and not all 0, not {weights}.")
    return [weight / total for weight in weights]


def _check_alike(
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
        told = ", ".join(f"{key} ({two.get(key)!r}, not {one.get(key)!r})" for key in keys[:5])
        raise CheckpointError(f"{where}: they are not of one architecture, and differ in {told}.")
    if config.preprocess != other_config.preprocess:
        raise CheckpointError(
            f"{where}: they see images through different preprocessing. Average checkpoints of one recipe."
        )
    words = [{key: value for key, value in each.items() if key != WEIGHTS} for each in (files, other_files)]
    if words[0] != words[1]:
        raise CheckpointError(
            f"{where}: their tokenizers differ, so that a token is one word here and another there. "
            "Train the one from the other (init=REF) with tokenizer.extend=false, which keeps the words."
        )


def _structure(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings that decide what the model computes, nested keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key in _OF_LEARNING:
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

An image captioner ({kind}): the weighted average of {len(parts)} checkpoints, by `python -m jobs average`.

| checkpoint | share | SHA-256 of its weights |
|---|---|---|
{rows}

Words, preprocessing and decoding are those of the first. How each was trained, and on what data, is in `config.json`
under `provenance.average`; their terms hold for the average too. It has no scores of its own until it is evaluated:
`python -m jobs evaluate --model FOLDER --data SHARDS`.

```python
from captioning import load_captioner
load_captioner("FOLDER").caption(["photo.jpg"])
```
"""
