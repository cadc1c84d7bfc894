"""Charts as SVG, from the numbers of a result alone."""

import html
import math

from benchmarks.claims.claim import Chart

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 480, 280, 62, 16, 34, 226
COLOURS = ("#2f6fb5", "#d6453f", "#3e9851", "#e39421", "#8054a0")


def svg(chart: Chart) -> str:
    """Lines with their intervals where x is numbers, bars with theirs where it is words."""
    values = [v for s in chart.series for v in (*s.y, *s.low, *s.high) if v is not None]
    low, high = min(values), max(values)
    pad = 0.06 * ((high - low) or abs(high) or 1)
    bars = isinstance(chart.series[0].x[0], str)
    low, high = (min(0.0, low) if bars or 0 <= low < pad else low - pad), high + pad

    def down(v: float | None) -> float:
        v = min(max(low if v is None else v, low), high)
        return BOTTOM - (v - low) / (high - low) * (BOTTOM - TOP)

    box = f'viewBox="0 0 {WIDTH} {HEIGHT}" font-family="system-ui, sans-serif" font-size="12"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {box}>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for i in range(5):
        value = low + (high - low) * i / 4
        y = f"{down(value):.1f}"
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#e8eaee"/>')
        parts.append(_text(LEFT - 8, down(value) + 4, f"{value:.3g}", "end", "#5d6673"))
    parts.append(_text(LEFT, 18, chart.y, "start", "#1c1f24"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, chart.x, "middle", "#5d6673"))
    parts += _bars(chart, down) if bars else _lines(chart, down)
    return "".join(parts) + "</svg>\n"


def _lines(chart: Chart, down) -> list[str]:
    scale = math.log if chart.log else float
    places = sorted({x for s in chart.series for x in s.x})
    first, last = scale(places[0]), scale(places[-1])

    def across(x: float) -> float:
        return LEFT + 14 + (scale(x) - first) / ((last - first) or 1) * (WIDTH - RIGHT - LEFT - 28)

    ticks = (
        places if len(places) < 12 or chart.log else [places[0] + (places[-1] - places[0]) * i / 5 for i in range(6)]
    )
    shown = [ticks[0]]
    for x in ticks[1:]:  # those that have room
        if across(x) - across(shown[-1]) > 44:
            shown.append(x)
    parts = [_text(across(x), BOTTOM + 18, f"{x:.4g}", "middle", "#5d6673") for x in shown]
    for i, s in enumerate(chart.series):
        colour, points = COLOURS[i % len(COLOURS)], " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in zip(s.x, s.y))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [_interval(across(x), down(a), down(b), colour) for x, a, b in zip(s.x, s.low, s.high)]
        parts += [f'<circle cx="{across(x):.1f}" cy="{down(y):.1f}" r="3" fill="{colour}"/>' for x, y in zip(s.x, s.y)
                  if len(s.x) < 12]  # fmt: skip
    return parts + _legend(chart)


def _bars(chart: Chart, down) -> list[str]:
    names, count, parts = chart.series[0].x, len(chart.series), []
    step = (WIDTH - RIGHT - LEFT) / len(names)
    for i, s in enumerate(chart.series):
        colour, width = COLOURS[i % len(COLOURS)], min(60.0, 0.7 * step / count)
        for j, y in enumerate(s.y):
            middle = LEFT + step * (j + 0.5) + (i - (count - 1) / 2) * width
            top, base = sorted((down(y), down(0)))
            parts.append(f'<rect x="{middle - width / 2 + 1:.1f}" y="{top:.1f}" width="{width - 2:.1f}" '
                         f'height="{base - top:.1f}" fill="{colour}" opacity="0.85"/>')  # fmt: skip
            if s.low:
                parts.append(_interval(middle, down(s.low[j]), down(s.high[j]), "#1c1f24"))
    parts += [_text(LEFT + step * (j + 0.5), BOTTOM + 18, name, "middle", "#5d6673") for j, name in enumerate(names)]
    return parts + (_legend(chart) if count > 1 else [])


def _legend(chart: Chart) -> list[str]:
    parts, x = [], WIDTH - RIGHT
    for i, s in reversed(list(enumerate(chart.series))):
        if len(chart.series) > 1:
            parts.append(_text(x, 18, s.name, "end", COLOURS[i % len(COLOURS)]))
            x -= 7 * len(s.name) + 14
    return parts


def _interval(x: float, a: float, b: float, colour: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{a:.1f}" y2="{b:.1f}" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, words: str, anchor: str, colour: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{html.escape(words)}</text>'
