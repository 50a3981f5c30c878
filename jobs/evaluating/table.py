"""The tables that `evaluate` prints: one row per decoding, and one for what a person scores."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from captioning.decoding.settings import DecodingSettings

#: A row: its title, and its numbers under the names of `Scores.summary`.
Row = tuple[str, Mapping[str, float]]

_QUALITY = {
    **{f"bleu_{order}": f"BLEU-{order}" for order in range(1, 5)},
    **{"meteor": "METEOR", "rouge_l": "ROUGE-L", "cider_d": "CIDEr-D"},
}
_DIVERSITY_AND_FLAWS = {
    "recall_at_1": "R@1",
    "recall_at_10": "R@10",
    "distinct": "distinct %",
    "words": "words used",
    "mean_length": "length",
    "repetitions": "repeating",
    "truncated": "truncated",
    "unknown": "with UNK",
}
_COUNTS = ("words", "repetitions", "truncated", "unknown")
_SEARCH_COLUMNS = {
    "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4",
    "recall_at_10": "R@10",
    "mean_length": "length",
    "repetitions": "repeating",
    "truncated": "truncated",
}


def show_scores(rows: Sequence[Row], people: Mapping[str, float] | None) -> None:
    """Print the scores of captions and, where known, what a person scores."""
    shown = [*rows, *([] if people is None else [("a person", people)])]
    _print(_table("decoding", _QUALITY, shown))
    _print(_table("decoding", _DIVERSITY_AND_FLAWS, shown))
    print("R@k: the share of captions whose own photo ranks among the top k of all, by CIDEr-D against the references.")
    if people is not None:
        print("A person: one caption of each photo scored against its others, averaged over the choice of the one.")


def show_search(tried: Sequence[tuple[DecodingSettings, Mapping[str, float]]], current: DecodingSettings) -> None:
    """Print the decodings that a search tried, the chosen one first."""
    table = Table("decoding", "length penalty", "repetition penalty", "no repeated", *_SEARCH_COLUMNS.values())
    for column in table.columns[1:]:
        column.justify = "right"
    for decoding, scores in tried:
        ngrams = decoding.no_repeat_ngram_size
        table.add_row(
            name_of(decoding) + (" (current)" if decoding == current else ""),
            f"{decoding.length_penalty:g}",
            f"{decoding.repetition_penalty:g}",
            f"{ngrams}-gram" if ngrams else "–",
            *(_cell(name, scores) for name in _SEARCH_COLUMNS),
        )
    _print(table)


def name_of(decoding: DecodingSettings) -> str:
    """`greedy`, or `beam 3`."""
    return "greedy" if decoding.beam_size == 1 else f"beam {decoding.beam_size}"


def _table(first: str, names: Mapping[str, str], rows: Sequence[Row]) -> Table:
    known = [name for name in names if any(name in numbers for _, numbers in rows)]
    table = Table(first, *(names[name] for name in known))
    for column in table.columns[1:]:
        column.justify = "right"
    for title, numbers in rows:
        table.add_row(title, *(_cell(name, numbers) for name in known))
    return table


def _cell(name: str, numbers: Mapping[str, float]) -> str:
    if name not in numbers:
        return "–"
    return f"{numbers[name]:,.0f}" if name in _COUNTS else f"{numbers[name]:.1f}"


def _print(table: Any) -> None:
    console = Console()
    if not console.is_terminal:
        # Files and pipes have no width, so do not wrap.
        console.width = 140
    console.print(table)
