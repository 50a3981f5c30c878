"""Line charts as inline SVG: values over training steps, with the ends of stages marked.

Colours come from the page's CSS, so charts follow its light and dark modes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import floor, log10

_WIDTH, _HEIGHT = 480, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 36
#: Curves with more points are downsampled.
_MAX_POINTS = 400
#: Curves with no more points have dots: a single point draws no line.
_FEW_POINTS = 8


@dataclass(frozen=True)
class Series:
    """A curve: its name and its points (step, value) in order of step."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False


def line_chart(series: Sequence[Series], *, label: str, ends: Sequence[int] = ()) -> str:
    """A chart of all `series`. `label` is for screen readers, `ends` are the steps at which stages ended."""
    drawn = [each for each in series if each.points]
    if not drawn:
        return '<p class="quiet">No data yet.</p>'
    values = [y for each in drawn for _, y in each.points]
    last = max(x for each in drawn for x, _ in each.points) or 1.0
    ticks = nice_ticks(min(values), max(values))
    low, high = ticks[0], ticks[-1]

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / last

    def down(y: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (y - low) / (high - low)

    parts = []
    for value in ticks:
        y = down(value)
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.6g}</text>'
        )
    for end in ends:
        x = across(end)
        parts.append(f'<line class="end" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
    for number, each in enumerate(drawn):
        points = downsample(each.points)
        path = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="curve s{number}" points="{path}"/>')
        if each.dots or len(points) <= _FEW_POINTS:
            parts += [
                f'<circle class="dot s{number}" cx="{across(x):.1f}" cy="{down(y):.1f}" r="3">'
                f"<title>{escape(each.name)} {y:.4g} at step {x:,.0f}</title></circle>"
                for x, y in points
            ]
    for x in sorted({round(last * part / 4) for part in range(5)}):
        parts.append(f'<text x="{across(x):.1f}" y="{_HEIGHT - _BOTTOM + 15}" text-anchor="middle">{x:,}</text>')
    parts.append(f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">step</text>')
    names = ""
    if len(drawn) > 1:
        items = "".join(f'<li><i class="s{number}"></i>{escape(each.name)}</li>' for number, each in enumerate(drawn))
        names = f'<ul class="legend">{items}</ul>'
    picture = f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'
    return picture + names


def downsample(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most `_MAX_POINTS` points: means of groups of neighbours, each at the last step of its group."""
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[at : at + size] for at in range(0, len(points), size)] if size > 1 else [[p] for p in points]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to six evenly spaced round numbers that cover `low` to `high`."""
    if high <= low:
        low, high = (low - abs(low) / 2, high + abs(high) / 2) if low else (0.0, 1.0)
    rough = (high - low) / 4
    power = 10.0 ** floor(log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first = floor(low / step + 1e-9)
    ticks = [first * step]
    while ticks[-1] < high - step * 1e-9:
        ticks.append((first + len(ticks)) * step)
    return ticks
