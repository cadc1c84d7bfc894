"""Charts as SVG."""

import html
import math

from benchmarks.claims.claim import Chart

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 280, 62, 16, 34, 226
COLOURS = ("#2f6fb5", "#d6453f", "#3e9851", "#e39421", "#8054a0")


def svg(chart: Chart) -> str:
    """A line chart with intervals, or a bar chart if the x values are strings."""
    values = [v for s in chart.series for v in (*s.y, *s.low, *s.high) if v is not None]
    low, high = min(values), max(values)
    pad = 0.06 * ((high - low) or abs(high) or 1)
    bars = isinstance(chart.series[0].x[0], str)
    low, high = (min(0.0, low) if bars or 0 <= low < pad else low - pad), high + pad

    def y_at(v: float | None) -> float:
        v = min(max(low if v is None else v, low), high)
        return BOTTOM - (v - low) / (high - low) * (BOTTOM - TOP)

    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12"'
    elements = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        y = f"{y_at(value):.1f}"
        elements.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e8eaee"/>')
        elements.append(_text(LEFT - 8, y_at(value) + 4, f"{value:.3g}", "end", "#5d6673"))
    elements.append(_text(LEFT, 18, chart.y, "start", "#1c1f24"))
    elements.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, chart.x, "middle", "#5d6673"))
    elements += _bars(chart, y_at) if bars else _lines(chart, y_at)
    return "".join(elements) + "</svg>\n"


def _lines(chart: Chart, y_at) -> list[str]:
    scale = math.log if chart.log else float
    xs = sorted({x for s in chart.series for x in s.x})
    first, last = scale(xs[0]), scale(xs[-1])

    def x_at(x: float) -> float:
        return LEFT + 14 + (scale(x) - first) / ((last - first) or 1) * (WIDTH - RIGHT - LEFT - 28)

    ticks = xs if len(xs) < 12 or chart.log else [xs[0] + (xs[-1] - xs[0]) * i / 5 for i in range(6)]
    shown = [ticks[0]]
    for x in ticks[1:]:  # without overlap
        if x_at(x) - x_at(shown[-1]) > 44:
            shown.append(x)
    elements = [_text(x_at(x), BOTTOM + 18, f"{x:.4g}", "middle", "#5d6673") for x in shown]
    for i, s in enumerate(chart.series):
        colour, points = COLOURS[i % len(COLOURS)], " ".join(f"{x_at(x):.1f},{y_at(y):.1f}" for x, y in zip(s.x, s.y))
        elements.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        elements += [_interval(x_at(x), y_at(a), y_at(b), colour) for x, a, b in zip(s.x, s.low, s.high)]
        elements += [f'<circle cx="{x_at(x):.1f}" cy="{y_at(y):.1f}" r="3" fill="{colour}"/>' for x, y in zip(s.x, s.y)
                     if len(s.x) < 12]  # fmt: skip
    return elements + _legend(chart)


def _bars(chart: Chart, y_at) -> list[str]:
    names, count, elements = chart.series[0].x, len(chart.series), []
    step = (WIDTH - RIGHT - LEFT) / len(names)
    for i, s in enumerate(chart.series):
        colour, width = COLOURS[i % len(COLOURS)], min(60.0, 0.7 * step / count)
        for j, y in enumerate(s.y):
            middle = LEFT + step * (j + 0.5) + (i - (count - 1) / 2) * width
            top, base = sorted((y_at(y), y_at(0)))
            elements.append(f'<rect x="{middle - width / 2 + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" '
                            f'height="{base - top:.1f}" fill="{colour}" opacity="0.85"/>')  # fmt: skip
            if s.low:
                elements.append(_interval(middle, y_at(s.low[j]), y_at(s.high[j]), "#1c1f24"))
    elements += [_text(LEFT + step * (j + 0.5), BOTTOM + 18, name, "middle", "#5d6673") for j, name in enumerate(names)]
    return elements + (_legend(chart) if count > 1 else [])


def _legend(chart: Chart) -> list[str]:
    elements, x = [], WIDTH - RIGHT
    for i, s in reversed(list(enumerate(chart.series))):
        if len(chart.series) > 1:
            elements.append(_text(x, 18, s.name, "end", COLOURS[i % len(COLOURS)]))
            x -= 7 * len(s.name) + 14
    return elements


def _interval(x: float, a: float, b: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(text)}</text>'
