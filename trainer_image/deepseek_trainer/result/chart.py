"""Line charts as inline SVG.  Pure."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 30, 30
_COLORS = ("#2563eb", "#d97706", "#059669")


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear scale from values to pixels, with ticks at round values."""

    low: float
    high: float
    start: float
    stop: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.stop - self.start)

    def ticks(self, wanted: int = 5) -> list[float]:
        step = _round_step((self.high - self.low) / wanted)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]


def line_chart(title: str, series: Mapping[str, Sequence[Point]], marks: Iterable[float] = ()) -> str:
    """One line per series of (x, y) points, dashed vertical lines at `marks`; "" if there is nothing to draw.

    Points that are not finite are left out.
    """
    lines = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in series.items()}
    everything = [point for points in lines.values() for point in points]
    if not everything:
        return ""
    x = _axis([p[0] for p in everything], _LEFT, WIDTH - _RIGHT)
    y = _axis([p[1] for p in everything], HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x, y), *(_mark(x, at) for at in marks if x.low <= at <= x.high)]
    for i, (name, points) in enumerate(lines.items()):
        parts += _line(name, points, x, y, i)
    label = html.escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
        f'<text x="{_LEFT}" y="16" class="title">{label}</text>{"".join(parts)}</svg>'
    )


def _axis(values: Sequence[float], start: float, stop: float) -> Axis:
    low, high = min(values), max(values)
    room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0  # a flat line still needs a scale
    return Axis(low - room, high + room, start, stop)


def _round_step(raw: float) -> float:
    """1, 2 or 5 times a power of ten, at least `raw`."""
    power: float = 10 ** math.floor(math.log10(raw))
    return next(m * power for m in (1.0, 2.0, 5.0, 10.0) if m * power >= raw * (1 - 1e-9))


def _grid(x: Axis, y: Axis) -> list[str]:
    across = [
        f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y.at(v):.1f}" y2="{y.at(v):.1f}" class="grid"/>'
        f'<text x="{_LEFT - 6}" y="{y.at(v) + 4:.1f}" class="y">{v:.4g}</text>'
        for v in y.ticks()
    ]
    below = [f'<text x="{x.at(v):.1f}" y="{HEIGHT - 10}" class="x">{v:.6g}</text>' for v in x.ticks(8)]
    return across + below


def _mark(x: Axis, at: float) -> str:
    return f'<line x1="{x.at(at):.1f}" x2="{x.at(at):.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" class="mark"/>'


def _line(name: str, points: Sequence[Point], x: Axis, y: Axis, i: int) -> list[str]:
    color = _COLORS[i % len(_COLORS)]
    path = " ".join(f"{x.at(px):.1f},{y.at(py):.1f}" for px, py in points)
    dots = [f'<circle cx="{x.at(px):.1f}" cy="{y.at(py):.1f}" r="2.5" fill="{color}"/>' for px, py in points]
    legend = f'<text x="{WIDTH - _RIGHT - 130 * i}" y="16" class="legend" fill="{color}">{html.escape(name)}</text>'
    return [f'<polyline points="{path}" stroke="{color}"/>', *(dots if len(points) <= 40 else []), legend]
