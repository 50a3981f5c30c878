"""What is made of the timings of decoding: the published ratios, and the table. Times nothing itself."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from rich.table import Table

#: For each published key: the way that is compared, and the cases of which the least counts.
KEYS = {
    "decode_vs_generate": ("generate", ("gpt2-small",)),
    "decode_vs_generate_4x256": ("generate", ("4x256",)),
    "decode_bf16_vs_generate": ("generate", ("gpt2-small bf16", "4x256 bf16")),
    "decode_vs_single": ("single", ("gpt2-small", "4x256")),
    "decode_vs_floor": ("floor", ("gpt2-small", "4x256")),
    "decode_lstm_vs_floor": ("floor", ("lstm",)),
}
_WAYS = ("generate", "single", "floor")


def decoding_ratios(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Our rate over theirs, of medians. The floor's share is at most 1: what is left is not multiplication."""
    cases = {name: _seconds(each) for name, each in _cases(turns)}
    found = {}
    for key, (way, names) in KEYS.items():
        ratios = [cases[name][way] / cases[name]["ours"] for name in names if way in cases.get(name, {})]
        if ratios:
            found[key] = min(ratios)
    return found


def make_decoding_table(turns: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each case."""
    table = Table(pad_edge=False)
    table.add_column("decoding", no_wrap=True)
    for heading in ("captions/s", "ours ÷ generate", "ours ÷ one by one", "ours ÷ floor", "same tokens as generate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, each in _cases(turns):
        seconds = _seconds(each)
        shares = [f"{seconds[way] / seconds['ours']:.2f}" if way in seconds else "–" for way in _WAYS]
        same = min((turn["same_as_generate"] for turn in each if "same_as_generate" in turn), default=None)
        images = each[0]["images"]
        table.add_row(name, f"{images / seconds['ours']:,.1f}", *shares, "–" if same is None else f"{same} of {images}")
    return table


def _cases(turns: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for name in dict.fromkeys(turn["case"] for turn in turns):
        yield name, [turn for turn in turns if turn["case"] == name]


def _seconds(turns: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {way: median(turn["seconds"][way] for turn in turns) for way in turns[0]["seconds"]}
