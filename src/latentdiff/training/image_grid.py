"""Image grids and training curves, as Pillow images."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from latentdiff.training.log import read_metrics

COLOURS = ((214, 69, 65), (46, 117, 182), (62, 152, 81), (227, 148, 33), (128, 84, 160), (90, 90, 90))


def to_uint8(x: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3], rounded."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(x: Tensor | np.ndarray, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Arrange images, [B, 3, H, W] in [-1, 1] or uint8 [B, H, W, 3], on white, `columns` in a row, `gap` pixels apart.

    `scale` enlarges them by an integer factor without smoothing.
    """
    images = to_uint8(x) if isinstance(x, Tensor) else x
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return Image.fromarray(sheet)


def save_grid(x: Tensor, path: Path, columns: int) -> None:
    """Save images [B, 3, H, W] in [-1, 1] as a grid; images below 96 pixels are enlarged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(x, columns, scale=max(1, 96 // x.shape[-1])).save(path)


def plot_curves(metrics: Path, path: Path, names: tuple[str, ...]) -> None:
    """Plot metrics.jsonl: a panel per metric with at least two values, raw (thin) and as a running mean (thick)."""
    lines = read_metrics(metrics)
    panels = [(name, [(line["step"], line[name]) for line in lines if line.get(name) is not None]) for name in names]
    panels = [(name, points) for name, points in panels if len(points) > 1]
    if not panels:
        return
    width, height = 640, 200
    sheet = Image.new("RGB", (width, height * len(panels)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (name, points) in enumerate(panels):
        box = (60, i * height + 24, width - 16, (i + 1) * height - 24)
        _draw_panel(draw, box, name, points, COLOURS[i % len(COLOURS)])
    sheet.save(path)


def _draw_panel(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], name: str, points: list, colour: tuple):
    left, top, right, bottom = box
    xs, ys = np.array(points, dtype=float).T
    low, high = float(ys.min()), float(np.quantile(ys, 0.98) if len(ys) > 20 else ys.max())
    high = high if high > low else low + 1.0
    x_pixels = left + (xs - xs[0]) / max(xs[-1] - xs[0], 1) * (right - left)
    window = max(1, len(ys) // 30)
    padded = np.pad(ys, (window // 2, window - 1 - window // 2), mode="edge")
    smooth = np.convolve(padded, np.ones(window) / window, "valid")
    pale = tuple((c + 2 * 255) // 3 for c in colour)
    for values, fill, line_width in ((ys, pale, 1), (smooth, colour, 2)):
        y_pixels = bottom - (np.clip(values, low, high) - low) / (high - low) * (bottom - top)
        draw.line(list(zip(x_pixels.tolist(), y_pixels.tolist())), fill=fill, width=line_width)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill=(160, 160, 160))
    draw.text((left, top - 18), f"{name}   last {ys[-1]:.4g}", fill=(0, 0, 0))
    draw.text((8, top - 4), f"{high:.3g}", fill=(90, 90, 90))
    draw.text((8, bottom - 8), f"{low:.3g}", fill=(90, 90, 90))
    draw.text((right - 48, bottom + 6), f"{int(xs[-1])}", fill=(90, 90, 90))
