"""A training run as one self-contained HTML page: curves, stages, evaluations, captions of a few photos.

`train` writes it at each validation and at the end, from the files in OUTPUT. The photos are those of the
validation split whose captions are in the history.
"""

import base64
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_markup
from pathlib import Path
from string import Template
from typing import Any

from captioning.data.images import MOST_PIXELS, open_rgb
from captioning.data.shards import ShardSet, iterate_shard
from captioning.errors import CaptioningError
from captioning.redaction import without_secrets
from captioning.storage import Location
from jobs.progress import duration
from jobs.training.charts import Series, line_chart

_TEMPLATE = Path(__file__).with_name("page.html")
NAME = "report.html"
#: Seconds after which the page of an unfinished run reloads.
_REFRESH = 60
#: Pixels of a photo's longer side.
_SIDE = 320
_QUALITY = 75
_SCORES = (("cider_d", "CIDEr-D"), ("bleu_4", "BLEU-4"), ("rouge_l", "ROUGE-L"))


@dataclass(frozen=True)
class Photo:
    """A validation photo: a small JPEG as a `data:` URI (empty if it cannot be read), and its reference captions."""

    data_uri: str
    captions: tuple[str, ...]


class TrainPage:
    """The page of the run in `output`, whose validation images are the `split` of `shards`."""

    def __init__(self, output: Location, shards: ShardSet, split: str) -> None:
        self.file = output / NAME
        self._output = output
        self._shards = shards
        self._split = split
        self._photos: dict[str, Photo] = {}

    def write(self) -> None:
        """Write the page, if the run has records yet. Raises `StorageError`."""
        metrics, summary, run = (self._output / name for name in ("metrics.jsonl", "summary.json", "train.json"))
        if not metrics.exists():
            return
        records = [json.loads(line) for line in metrics.read_text().splitlines()]
        keys = {key for record in records for key, _ in record.get("samples", ())}
        self._load_photos(keys - self._photos.keys())
        text = page(
            str(self._output),
            records,
            photos=self._photos,
            settings=json.loads(run.read_text()).get("settings", {}) if run.exists() else {},
            finished=summary.exists(),
        )
        self.file.write_text(text)

    def _load_photos(self, keys: set[str]) -> None:
        """Read the photos of these keys, which are among the first images of the split."""
        missing = set(keys)
        try:
            for shard in self._shards.split(self._split):
                if not missing:
                    return
                for sample in iterate_shard(self._shards.location, shard.name):
                    if sample.key in missing:
                        missing.remove(sample.key)
                        self._photos[sample.key] = Photo(_thumbnail(sample.image), sample.captions)
                    if not missing:
                        return
        except CaptioningError:
            pass  # the page then shows captions without photos
        self._photos |= {key: Photo("", ()) for key in missing}


def page(
    output: str,
    records: Sequence[Mapping[str, Any]],
    *,
    photos: Mapping[str, Photo],
    settings: Mapping[str, Any],
    finished: bool,
) -> str:
    """The page of a run with the history `records`. `photos` are by key, `settings` those of the run."""
    steps = [record for record in records if record["kind"] == "step"]
    validations = [record for record in records if record["kind"] == "validation"]
    name = output.rstrip("/").rpartition("/")[2] or output
    state = "finished" if finished else "running or stopped"
    sections = [
        f'<header><h1>Training of {escape(name)}</h1><p class="quiet">{escape(output)} · {state}</p></header>',
        _figures(steps, validations),
        _curves(steps, validations),
        _stages(records, settings),
        _evaluations(validations),
        _samples(validations, photos),
        _notes(records),
        _settings(settings),
    ]
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(f"Training of {name}"),
        refresh="" if finished else f'<meta http-equiv="refresh" content="{_REFRESH}">\n',
        body="\n".join(section for section in sections if section),
    )


def escape(text: object) -> str:
    """`text` escaped for HTML, with credentials redacted."""
    return escape_markup(without_secrets(str(text)))


def _thumbnail(data: bytes) -> str:
    try:
        image = open_rgb(data, max_pixels=MOST_PIXELS)
    except CaptioningError:
        return ""
    image.thumbnail((_SIDE, _SIDE))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def _best(validations: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The validation with the highest CIDEr-D, if any."""
    scored = [record for record in validations if "cider_d" in record]
    return max(scored, key=lambda record: record["cider_d"], default=None)


def _figures(steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> str:
    best, figures = _best(validations), list[tuple[str, str]]()
    if best is not None:
        for at, (key, label) in enumerate(_SCORES):
            figures.append((label if at else f"best {label}", f"{best[key]:.1f}"))
        figures.append(("at step", f"{best['step']:,}"))
    if steps:
        # The last steps of a stage that was stopped early have a validation alone.
        last = max([steps[-1], *validations[-1:]], key=lambda record: record["step"])
        figures.append(("steps", f"{last['step']:,} of {last['total_steps']:,}"))
        figures.append(("images seen", f"{last['images_seen']:,}"))
        figures.append(("training time", duration(last["seconds"])))
        figures.append(("images/s", f"{steps[-1]['images_per_second']:,.1f}"))
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
    return f'<dl class="figures">{items}</dl>' if figures else ""


def _curves(steps: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]]) -> str:
    ends = [one["step"] for one, other in itertools.pairwise(steps) if one["stage"] != other["stage"]]
    loss = [Series("loss", [(record["step"], record["loss"]) for record in steps])]
    rate = [Series("learning rate", [(record["step"], record["lr"]) for record in steps])]
    scores = [
        Series(label, [(record["step"], record[key]) for record in validations if key in record], dots=True)
        for key, label in _SCORES
    ]
    panels = "".join(
        f'<div class="panel"><h3>{title}</h3>{line_chart(series, label=f"{title} over the steps", ends=ends)}</div>'
        for title, series in (("Training loss", loss), ("Validation", scores), ("Learning rate", rate))
    )
    marked = '<p class="quiet">Dashed lines mark the ends of stages.</p>' if ends else ""
    return f'<section id="curves"><h2>Curves</h2>{marked}<div class="panels">{panels}</div></section>'


def _stages(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    own = {stage.get("name", f"stage-{n}"): stage for n, stage in enumerate(settings.get("stages") or (), start=1)}
    seen: dict[str, list[Mapping[str, Any]]] = {name: [] for name in own}
    for record in records:
        if "stage" in record:
            seen.setdefault(record["stage"], []).append(record)
    rows, before, began = [], 0, 0.0
    for name, of_stage in seen.items():
        objective = own.get(name, {}).get("objective", settings.get("objective", ""))
        if not of_stage:
            rows.append(_row(name, objective, "pending", "", "", ""))
            continue
        last = of_stage[-1]
        best = _best([record for record in of_stage if record["kind"] == "validation"])
        rows.append(
            _row(
                name,
                objective,
                f"{last['step'] - before:,}",
                f"{last['epoch']:.2f}",
                duration(last["seconds"] - began),
                "" if best is None else f"{best['cider_d']:.1f}",
            )
        )
        before, began = last["step"], last["seconds"]
    head = _row("stage", "objective", "steps", "epochs", "time", "best CIDEr-D", cell="th")
    return (
        f'<section id="stages"><h2>Stages</h2><div class="scroll"><table>{head}{"".join(rows)}</table></div></section>'
    )


def _row(name: str, objective: object, *numbers: str, cell: str = "td") -> str:
    texts = f"<{cell}>{escape(name)}</{cell}><{cell}>{escape(objective)}</{cell}>"
    return f"<tr>{texts}" + "".join(f'<{cell} class="number">{escape(n)}</{cell}>' for n in numbers) + "</tr>"


def _evaluations(validations: Sequence[Mapping[str, Any]]) -> str:
    if not validations:
        return ""
    best, rows = _best(validations), []
    for record in reversed(validations):
        scores = [f"{record[key]:.1f}" if key in record else "–" for key, _ in _SCORES]
        other = "" if "cider_d" in record or "score" not in record else f"{record['score']:.3f}"
        mark = ' class="best"' if record is best else ""
        numbers = "".join(
            f'<td class="number">{text}</td>' for text in (f"{record['step']:,}", f"{record['epoch']:.2f}", *scores)
        )
        rows.append(f"<tr{mark}><td>{escape(record['stage'])}</td>{numbers}<td>{escape(other)}</td></tr>")
    heads = "".join(f'<th class="number">{label}</th>' for label in ("step", "epoch", *(label for _, label in _SCORES)))
    return (
        '<section id="evaluations"><h2>Evaluations</h2><p class="quiet">On the validation split, newest first; the '
        'best is highlighted and kept.</p><div class="scroll"><table>'
        f"<tr><th>stage</th>{heads}<th>other score</th></tr>{''.join(rows)}</table></div></section>"
    )


def _samples(validations: Sequence[Mapping[str, Any]], photos: Mapping[str, Photo]) -> str:
    by_photo: dict[str, list[tuple[int, str]]] = {}
    for record in validations:
        for key, caption in record.get("samples", ()):
            earlier = by_photo.setdefault(key, [])
            if not earlier or earlier[-1][1] != caption:
                earlier.append((record["step"], caption))
    if not by_photo:
        return ""
    figures = "".join(_sample(key, captions, photos.get(key, Photo("", ()))) for key, captions in by_photo.items())
    return (
        '<section id="samples"><h2>Captions during training</h2><p class="quiet">The same photos of the validation '
        f"split at each evaluation; a caption is listed only when it changes.</p>{figures}</section>"
    )


def _sample(key: str, captions: Sequence[tuple[int, str]], photo: Photo) -> str:
    picture = (
        f'<img src="{escape_markup(photo.data_uri)}" alt="{escape(captions[-1][1])}" loading="lazy">'
        if photo.data_uri
        else "<p>The photo could not be read.</p>"
    )
    lines = "".join(f"<li><small>step {step:,}</small> {escape(text)}</li>" for step, text in captions)
    people = ""
    if photo.captions:
        items = "".join(f"<li>{escape(text)}</li>" for text in photo.captions)
        people = f'<details><summary>Reference captions</summary><ul class="people">{items}</ul></details>'
    return (
        f'<figure><div class="picture">{picture}</div><figcaption><small>{escape(key)}</small><ol>{lines}</ol>{people}'
        "</figcaption></figure>"
    )


def _notes(records: Sequence[Mapping[str, Any]]) -> str:
    notes = [record for record in records if record["kind"] == "note"]
    items = "".join(f"<li><small>step {note['step']:,}</small> {escape(note['message'])}</li>" for note in notes)
    return f'<section id="notes"><h2>Notes</h2><ol>{items}</ol></section>' if notes else ""


def _settings(settings: Mapping[str, Any]) -> str:
    if not settings:
        return ""
    import yaml

    text = yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True)
    return f"<footer><details><summary>Settings of the run</summary><pre>{escape(text)}</pre></details></footer>"
