"""Results of the decoding benchmark: the published ratios and the table."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

#: For each published key: the method compared with ours, and the cases whose minimum is published.
KEYS = {
    "decode_vs_generate": ("generate", ("gpt2-small",)),
    "decode_vs_generate_4x256": ("generate", ("4x256",)),
    "decode_bf16_vs_generate": ("generate", ("gpt2-small bf16", "4x256 bf16")),
    "decode_vs_single": ("single", ("gpt2-small", "4x256")),
    "decode_vs_floor": ("floor", ("gpt2-small", "4x256")),
    "decode_lstm_vs_floor": ("floor", ("lstm",)),
}
_METHODS = ("generate", "single", "floor")


def decoding_ratios(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Our rate over that of the others, from medians. For the floor at most 1: the rest is not matrix products."""
    cases = {name: _seconds(each) for name, each in _cases(turns)}
    found = {}
    for key, (method, names) in KEYS.items():
        ratios = [cases[name][method] / cases[name]["ours"] for name in names if method in cases.get(name, {})]
        if ratios:
            found[key] = min(ratios)
    return found


def make_decoding_table(turns: Sequence[Mapping[str, Any]]) -> Table:
    """The table, with a row for each case."""
    table = Table(pad_edge=False)
    table.add_column("decoding", no_wrap=True)
    for heading in ("captions/s", "ours ÷ generate", "ours ÷ one by one", "ours ÷ floor", "same tokens as generate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in _cases(turns):
        seconds = _seconds(each)
        shares = [f"{seconds[method] / seconds['ours']:.2f}" if method in seconds else "–" for method in _METHODS]
        same = min((turn["same_as_generate"] for turn in each if "same_as_generate" in turn), default=None)
        images = each[0]["images"]
        table.add_row(name, f"{images / seconds['ours']:,.1f}", *shares, "–" if same is None else f"{same} of {images}")
    return table


def _cases(turns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for name in dict.fromkeys(turn["case"] for turn in turns):
        yield name, [turn for turn in turns if turn["case"] == name]


def _seconds(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {method: median(turn["seconds"][method] for turn in turns) for method in turns[0]["seconds"]}
