"""Small charts as inline SVG: histograms, and curves over time.

Colours come from the page's CSS, so charts follow its light and dark themes.
"""

from collections.abc import Callable, Sequence
from html import escape

from jobs.reporting.table import Histogram

_WIDTH, _HEIGHT = 480, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 10, 36
_WIDEST_BAR = 40


def histogram(
    data: Histogram, *, label: str, axis: str, bin_text: Callable[[float, float], str], picks: str = ""
) -> str:
    """A bar chart of `data`. `label` is for screen readers, `bin_text(start, stop)` names a bin.

    `picks` names the filter that the page's script sets when a bar is clicked.
    """
    if not data.counts:
        return _nothing()
    top = _round_up(max(data.counts))
    bar = (_WIDTH - _LEFT - _RIGHT) / len(data.counts)
    width = min(bar * 0.88, _WIDEST_BAR)
    shapes = []
    for number, count in enumerate(data.counts):
        start = data.start + number * data.step
        height = (_HEIGHT - _TOP - _BOTTOM) * count / top
        x, y = _LEFT + number * bar, _HEIGHT - _BOTTOM - height
        tip = escape(f"{bin_text(start, start + data.step)}: {count:,}")
        bounds = f' data-pick="{picks}" data-from="{start:.6g}" data-to="{start + data.step:.6g}"' if picks else ""
        shapes.append(
            f'<rect class="bar"{bounds} x="{x + (bar - width) / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}">'
            f"<title>{tip}</title></rect>"
        )
    ticks = []
    whole = data.step >= 1
    every = max(1, -(-len(data.counts) // 8))
    for number in range(0, len(data.counts) + (0 if whole else 1), every):
        x = _LEFT + (number + (0.5 if whole else 0)) * bar
        value = data.start + number * data.step
        ticks.append((x, f"{value:.0f}" if whole else f"{value:.2f}".rstrip("0").rstrip(".")))
    return _frame(shapes, ticks, top, label, axis)


def curve(points: Sequence[tuple[float, float]], *, label: str, axis: str, x_text: Callable[[float], str]) -> str:
    """The area under `points` (x, y), x ascending from 0, as steps that end at each x."""
    if not points:
        return _nothing()
    top = _round_up(max(y for _, y in points))
    last = points[-1][0] or 1.0

    def at(x: float, y: float) -> str:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last
        return f"{across:.1f},{_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * y / top:.1f}"

    path, before = [at(0, 0)], 0.0
    for x, y in points:
        path += [at(before, y), at(x, y)]
        before = x
    path.append(at(last, 0))
    ticks = [(_LEFT + (_WIDTH - _LEFT - _RIGHT) * part / 4, x_text(last * part / 4)) for part in range(5)]
    return _frame([f'<polygon class="area" points="{" ".join(path)}"/>'], ticks, top, label, axis)


def stacked(
    names: Sequence[str],
    points: Sequence[tuple[float, Sequence[float]]],
    *,
    label: str,
    axis: str,
    x_text: Callable[[float], str],
) -> str:
    """Stacked areas with a legend; `points` are (x, one value per name), drawn as steps that end at each x."""
    if not points or not names:
        return _nothing()
    top = _round_up(max(sum(values) for _, values in points))
    last = points[-1][0] or 1.0
    height, width = _HEIGHT - _TOP - _BOTTOM, _WIDTH - _LEFT - _RIGHT

    def line(levels: Sequence[float]) -> list[str]:
        places, before = [], 0.0
        for (x, _), level in zip(points, levels, strict=True):
            y = _HEIGHT - _BOTTOM - height * level / top
            places += [f"{_LEFT + width * before / last:.1f},{y:.1f}", f"{_LEFT + width * x / last:.1f},{y:.1f}"]
            before = x
        return places

    shapes = []
    below = [0.0] * len(points)
    for number, name in enumerate(names):
        above = [level + values[number] for level, (_, values) in zip(below, points, strict=True)]
        corners = " ".join([*line(above), *reversed(line(below))])
        shapes.append(
            f'<polygon class="stage stage-{number % 4}" points="{corners}"><title>{escape(name)}</title></polygon>'
        )
        below = above
    ticks = [(_LEFT + width * part / 4, x_text(last * part / 4)) for part in range(5)]
    keys = "".join(
        f'<li><span class="stage-{number % 4}"></span>{escape(name)}</li>' for number, name in enumerate(names)
    )
    return f'{_frame(shapes, ticks, top, label, axis)}<ul class="keys">{keys}</ul>'


def _frame(shapes: Sequence[str], ticks: Sequence[tuple[float, str]], top: float, label: str, axis: str) -> str:
    base, middle = _HEIGHT - _BOTTOM, _TOP + (_HEIGHT - _TOP - _BOTTOM) / 2
    lines = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end">{_number(value)}</text>'
        for y, value in ((_TOP, top), (middle, top / 2), (base, 0))
    )
    marks = "".join(
        # A label centred on the right end would be cut off.
        f'<text x="{min(x, _WIDTH - 1):.1f}" y="{base + 15}" '
        f'text-anchor="{"end" if x >= _WIDTH - _RIGHT - 1 and len(text) > 4 else "middle"}">{escape(text)}</text>'
        for x, text in ticks
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{lines}{"".join(shapes)}{marks}'
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{escape(axis)}</text></svg>'
    )


def _nothing() -> str:
    return '<p class="quiet">No data.</p>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 3, 4, 5, 6, 8 × a power of ten, so that the axis labels at the top and the middle are short."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in (1, 2, 3, 4, 5, 6, 8, 10) if power * step >= value)


def _number(value: float) -> str:
    if value >= 10_000:
        return f"{value / 1000:,.10g}k"
    return f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
