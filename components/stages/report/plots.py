"""Charts as inline SVG: text stays text, colours follow the page's light or dark scheme."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10, sqrt

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 26, 48
COLOURS = tuple(f"var(--c{i})" for i in range(6))  # the page's: Okabe and Ito's, told apart by all eyes


@dataclass(frozen=True)
class Histogram:
    """Counts of equal bins."""

    name: str
    counts: Sequence[int]
    low: float
    high: float
    mean: float | None


@dataclass(frozen=True)
class Circle:
    """One mixture in the noise-diversity plane."""

    name: str
    x: float
    y: float
    size: float


def histograms(series: Sequence[Histogram], label: str) -> str:
    """Draw overlaid densities (paper, Figure 4); each sums to 1, so that parts of a pool compare."""
    shown = [s for s in series if sum(s.counts)]
    if not shown:
        return ""
    bins = len(shown[0].counts)
    used = [i for s in shown for i, count in enumerate(s.counts) if count]
    first, last = max(0, min(used) - 1), min(bins, max(used) + 2)
    width = (shown[0].high - shown[0].low) / bins
    low, high = shown[0].low + first * width, shown[0].low + last * width
    peak = max(count / sum(s.counts) for s in shown for count in s.counts)
    axes = _Axes(low, high, 0, peak * 1.08)
    parts = [axes.grid(label, f"share of captions per {width:g}", percent=True)]
    for colour, s in zip(COLOURS * 40, shown, strict=False):
        total = sum(s.counts)
        points = [f"{axes.x(low):.1f},{axes.y(0):.1f}"]
        for i in range(first, last):
            y = axes.y(s.counts[i] / total)
            points += [f"{axes.x(s.low + i * width):.1f},{y:.1f}", f"{axes.x(s.low + (i + 1) * width):.1f},{y:.1f}"]
        points.append(f"{axes.x(high):.1f},{axes.y(0):.1f}")
        parts.append(
            f'<polygon points="{" ".join(points)}" fill="{colour}" fill-opacity=".22" stroke="{colour}" '
            f'stroke-width="1.6"/>'
        )
        if s.mean is not None:
            x = axes.x(s.mean)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{axes.y(0):.1f}" stroke="{colour}" '
                f'stroke-dasharray="4 3" stroke-width="1.4"/>'
            )
    means = "; ".join(f"{s.name} mean {s.mean:.3f}" for s in shown if s.mean is not None)
    return _svg("".join(parts), f"{label}: {means}") + _legend([s.name for s in shown])


def scatter(circles: Sequence[Circle], x_label: str, y_label: str) -> str:
    """Draw circles whose area is a size (paper, Figure 5), numbered as in the legend: names would overlap."""
    if not circles:
        return ""
    xs, ys = [c.x for c in circles], [c.y for c in circles]
    pad_x, pad_y = (max(xs) - min(xs)) * 0.2 or max(xs) * 0.2 or 1, (max(ys) - min(ys)) * 0.25 or 0.05
    axes = _Axes(max(0, min(xs) - pad_x), max(xs) + pad_x, min(ys) - pad_y, max(ys) + pad_y)
    biggest = max(c.size for c in circles)
    parts = [axes.grid(x_label, y_label)]
    numbered = zip(COLOURS * 40, range(1, len(circles) + 1), circles, strict=False)
    for colour, number, c in sorted(numbered, key=lambda drawn: -drawn[2].size):  # small ones on top
        radius = max(3.0, 24 * sqrt(c.size / biggest))
        x, y = axes.x(c.x), axes.y(c.y)
        beside = 0 if radius > 11 else radius + 8
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" fill="{colour}" '
            f'fill-opacity=".55" stroke="{colour}"><title>{escape(c.name)}: {c.size:,.0f} pairs</title></circle>'
            f'<text class="name" x="{x + beside:.1f}" y="{y + 5:.1f}" text-anchor="middle">{number}</text>'
        )
    said = "; ".join(f"{c.name}: {c.x:,.0f} trigrams, mean cosine {c.y:.3f}" for c in circles)
    return _svg("".join(parts), f"{y_label} against {x_label}. {said}") + _legend(
        [f"{i} {c.name}" for i, c in enumerate(circles, 1)]
    )


class _Axes:
    """Maps data to the drawing."""

    def __init__(self, x_low: float, x_high: float, y_low: float, y_high: float) -> None:
        self.x_low, self.x_high, self.y_low, self.y_high = x_low, x_high, y_low, y_high

    def x(self, value: float) -> float:
        return LEFT + (value - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str, y_label: str, percent: bool = False) -> str:
        parts = []
        for tick in _ticks(self.y_low, self.y_high):
            text = f"{100 * tick:g}%" if percent else _number(tick)
            parts.append(
                f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{self.y(tick):.1f}" y2="{self.y(tick):.1f}"/>'
                f'<text x="{LEFT - 6}" y="{self.y(tick) + 4:.1f}" text-anchor="end">{text}</text>'
            )
        for tick in _ticks(self.x_low, self.x_high):
            x = self.x(tick)
            parts.append(
                f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}"/>'
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 19}" text-anchor="middle">{_number(tick)}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 7}" text-anchor="middle">{escape(x_label)}</text>')
        parts.append(f'<text class="axis" x="4" y="14" text-anchor="start">{escape(y_label)}</text>')
        return "".join(parts)


def _ticks(low: float, high: float) -> list[float]:
    """Choose about five round values inside the range."""
    raw = (high - low) / 5
    step = 10 ** floor(log10(raw))
    step *= next(m for m in (1, 2, 5, 10) if m * step >= raw)
    first = ceil(low / step)
    return [round(i * step, 10) for i in range(first, floor(high / step + 1e-9) + 1)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:g}"


def _svg(inside: str, description: str) -> str:
    text = escape(description, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text}"><title>{text}</title>{inside}</svg>'


def _legend(names: Sequence[str]) -> str:
    items = [
        f'<li><span style="background:{colour}"></span>{escape(name)}</li>'
        for colour, name in zip(COLOURS * 40, names, strict=False)
    ]
    return f'<ul class="legend">{"".join(items)}</ul>'
