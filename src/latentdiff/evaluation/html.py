"""HTML pages in one file, with images, plots and style inside, for any screen width."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

STYLE = Path(__file__).with_name("report.css").read_text(encoding="utf-8")


def page(title: str, body: str, style: str = "", script: str = "") -> str:
    """A complete HTML file with the style of report.css; style and script: CSS and JavaScript of this page."""
    code = f"<script>\n{script}</script>\n" if script else ""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape(title)}</title>\n<style>\n{STYLE}{style}</style>\n</head>\n'
        f"<body>\n<main>\n{body}\n</main>\n{code}</body>\n</html>\n"
    )


def escape(text: object) -> str:
    """Text as it is written inside HTML elements and attributes."""
    return html.escape(str(text), quote=True)


def section(title: str, description: str, body: str) -> str:
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="soft">{escape(description)}</p>\n{body}\n</section>'


def data_uri(image: Image.Image) -> str:
    """An image as a data URI: PNG up to 96 pixels, JPEG above."""
    file = io.BytesIO()
    small = max(image.size) <= 96
    options = {} if small else {"quality": 90}
    image.save(file, "PNG" if small else "JPEG", icc_profile=None, **options)  # color profiles are ignored in training
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


def figure(x: np.ndarray, caption: str = "", alt: str = "") -> str:
    """An image, uint8 [H, W, 3], with a caption. alt: text for screen readers; default: the caption."""
    image = Image.fromarray(x)
    small = ' class="small"' if max(image.size) <= 96 else ""
    figcaption = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img{small} src="{data_uri(image)}" alt="{escape(alt or caption)}">{figcaption}</figure>'


def gallery(images: Iterable[np.ndarray], captions: Iterable[str]) -> str:
    return f'<div class="tiles">{"".join(figure(x, c) for x, c in zip(images, captions))}</div>'


def image_table(rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str]) -> str:
    """Rows of images, each with its label, under the names of the columns; it scrolls if it is wider than the page."""
    cells = ["<span></span>"] + [f'<span class="label">{escape(name)}</span>' for name in columns]
    for label, images in rows:
        cells.append(f'<span class="label">{escape(label)}</span>')
        cells += [figure(x, alt=f"{label}, {name}") for x, name in zip(images, columns)]
    widths = f"minmax(64px, 200px) repeat({len(columns)}, minmax(44px, 96px))"
    return f'<div class="wide"><div class="strip" style="grid-template-columns: {widths}">{"".join(cells)}</div></div>'


def table(header: Sequence[str], rows: Iterable[Sequence[object]], classes: Sequence[str]) -> str:
    """classes: CSS class of each column: name, number, code or none."""
    top = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = ("".join(f'<td class="{css}">{escape(x)}</td>' for x, css in zip(row, classes)) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def curve(name: str, points: Sequence[tuple[float, float]]) -> str:
    """A plot of (step, value): the values thin, their running mean thick."""
    width, height, left, top, bottom = 320, 150, 46, 30, 128
    xs, ys = np.array(points, dtype=float).T
    low, high = float(ys.min()), float(np.quantile(ys, 0.98) if len(ys) > 20 else ys.max())
    high = high if high > low else low + 1.0
    window = max(1, len(ys) // 30)
    padded = np.pad(ys, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, "valid")
    x_pixels = left + (xs - xs[0]) / max(xs[-1] - xs[0], 1) * (width - left - 8)
    lines = []
    for values, colour, line_width in ((ys, "pale", 1), (smooth, "accent", 2)):
        y_pixels = bottom - (np.clip(values, low, high) - low) / (high - low) * (bottom - top)
        coordinates = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(x_pixels, y_pixels))
        lines.append(f'<polyline points="{coordinates}" style="stroke: var(--{colour}); stroke-width: {line_width}"/>')
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(name)} over steps">'
        f'<text class="title" x="0" y="14">{escape(name)}</text>'
        f'<text x="{width - 8}" y="14" text-anchor="end">last {ys[-1]:.4g}</text>'
        f'<line class="axis" x1="{left}" y1="{bottom}" x2="{width - 8}" y2="{bottom}"/>'
        f'<line class="axis" x1="{left}" y1="{top}" x2="{left}" y2="{bottom}"/>'
        f'<text x="{left - 6}" y="{top + 4}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{left - 6}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{left}" y="{height - 6}">{xs[0]:.0f}</text>'
        f'<text x="{width - 8}" y="{height - 6}" text-anchor="end">step {xs[-1]:.0f}</text>'
        f"{''.join(lines)}</svg>"
    )
