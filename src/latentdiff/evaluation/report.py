"""report.html: what a run was, how it went, what it draws and how that was measured, in one file."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from latentdiff import config, recipe
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.data import loader
from latentdiff.evaluation import distances, html, image_sets, run, sample_images, stage_one
from latentdiff.evaluation.descriptions import CARDS, MEANING
from latentdiff.evaluation.run import EvalRun
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path
from latentdiff.training.log import read_metrics

CURVES = ("loss", "val_loss", "text_gap", "nll", "psnr", "ssim", "lpips", "kl", "perplexity", "disc_loss", "grad_norm")
GUIDANCE, STEPS = (1.0, 2.0, 4.0, 8.0), (5, 10, 20, 50)


@torch.no_grad()
def write(path: Path, subject: EvalRun, figures: dict, protocol: dict, options: Namespace) -> None:
    """The page; by one process."""
    parts = [glance(subject, figures), *curves(subject.folder), reconstructions(subject, options)]
    if not isinstance(subject.model, Autoencoder):
        parts += [*training_strips(subject), *drawn(subject, options), *settings_grid(subject, options)]
    parts += [numbers(figures, protocol), whole_recipe(subject.recipe)]
    with atomic_path(path) as tmp:
        tmp.write_text(html.page(f"{subject.folder.name}: report", "\n".join(parts)))


def glance(subject: EvalRun, figures: dict) -> str:
    kind = "autoencoder" if isinstance(subject.model, Autoencoder) else "latent diffusion model"
    height, width = subject.recipe.data.image_size
    size = sum(p.numel() for p in subject.model.parameters())
    about = f"{kind}, {size:,} parameters, {height} × {width} pixels, step {figures['step']:,}"
    cards = [(name, form.format(figures[key])) for key, (name, form) in CARDS.items() if figures.get(key) is not None]
    shown = "".join(f"<div><b>{html.words(value)}</b><span>{html.words(name)}</span></div>" for name, value in cards)
    head = f'<h1>{html.words(subject.folder.name)}</h1>\n<p class="soft">{html.words(about)}</p>'
    return f'{head}\n<div class="cards">{shown}</div>'


def curves(folder: Path) -> Iterator[str]:
    rows = read_metrics(folder / "metrics.jsonl")
    found = {name: [(row["step"], row[name]) for row in rows if row.get(name) is not None] for name in CURVES}
    drawn_ones = [html.curve(name, points) for name, points in found.items() if len(points) > 1]
    if drawn_ones:
        body = f'<div class="curves">{"".join(drawn_ones)}</div>'
        yield html.section("Training", "As logged: thin as measured, thick as a running mean.", body)


def reconstructions(subject: EvalRun, options: Namespace, count: int = 8) -> str:
    """Held-out pictures, what becomes of them, and the difference."""
    data = recipe.open_data(subject.recipe, options.split)
    x = loader.images(next(loader.sequential_batches(data, range(min(count, len(data))), count)), device_of(subject))
    y = stage_one.again(subject.autoencoder, x)
    rows = [("picture", html.images(x)), ("reconstruction", html.images(y)),
            ("difference × 4", html.images((y - x).abs() * 4 - 1))]  # fmt: skip
    about = f"The first pictures of {options.split}, through the autoencoder and back."
    return html.section("Reconstructions", about, html.strips(rows, [f"{i}" for i in range(len(x))]))


def training_strips(subject: EvalRun, prompts: int = 6, steps: int = 7) -> Iterator[str]:
    """The fixed prompts of samples/<step>.png, cut out of the grids that training left: a row each, over the steps."""
    files = sorted(p for p in (subject.folder / "samples").glob("*.png") if p.stem.isdigit())
    if len(files) < 1:
        return
    files = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, min(steps, len(files)))})]
    height, width = subject.recipe.data.image_size
    cut = [cells(Image.open(file).convert("RGB"), height, width) for file in files]
    named = subject.recipe.preview_prompts or captions(subject, "val")
    rows = [(named[i] if i < len(named) else f"picture {i}", [some[i] for some in cut])
            for i in range(min(prompts, *map(len, cut)))]  # fmt: skip
    about = "The same prompts from the same noise, drawn while the model was trained."
    columns = [f"step {int(file.stem):,}" for file in files]
    yield html.section("Over training", about, html.strips(rows, columns))


def cells(sheet: Image.Image, height: int, width: int, gap: int = 2) -> list[np.ndarray]:
    """The pictures of a grid, row by row, at their own size again."""
    scale = max(1, 96 // width)
    pixels = np.asarray(sheet)
    across, down = width * scale + gap, height * scale + gap
    places = [(top, left) for top in range(gap, pixels.shape[0] - down + 1, down)
              for left in range(gap, pixels.shape[1] - across + 1, across)]  # fmt: skip
    found = [pixels[t : t + height * scale : scale, le : le + width * scale : scale] for t, le in places]
    return [np.ascontiguousarray(some) for some in found]


def drawn(subject: EvalRun, options: Namespace, count: int = 32) -> Iterator[str]:
    """The first pictures, not chosen, and beside some of them the most similar training pictures."""
    world = World(0, 1, device_of(subject))
    stored, wanted, *_ = run.drawn_ones(subject, options, world)
    count = min(count, wanted.count)
    shown = [stored.item(i, 0)["image"] for i in range(count)]
    said = [""] * count if options.samples else wanted.batch(range(count)).get("caption", [""] * count)
    about = "The first pictures by number, not chosen, with what they were drawn from."
    yield html.section("Samples", about, html.tiles(shown, said))
    train = recipe.open_data(subject.recipe, "train")
    extractor, n = run.find_features(subject, options, world), min(len(train), 5000)
    ours, theirs = (
        image_sets.extract(extractor, data, k, world).features for data, k in ((stored, min(8, count)), (train, n))
    )
    found = distances.nearest(ours, theirs, 5)
    rows = [("", [shown[i], *(train.item(j, 0)["image"] for j in found.index[i].tolist())]) for i in range(len(ours))]
    labels = [f"sample {i}, {d:.2f} away" for i, d in enumerate(found.distance[:, 0].tolist())]
    rows = [(label, images) for label, (_, images) in zip(labels, rows)]
    about = f"The most similar of {n:,} training pictures, as seen by {extractor.about['name']}."
    yield html.section("Nearest neighbours", about, html.strips(rows, ["drawn", *(f"{i + 1}." for i in range(5))]))


def settings_grid(subject: EvalRun, options: Namespace, count: int = 2) -> Iterator[str]:
    """The same prompt and noise over guidance (rows) and steps (columns)."""
    model, r = subject.model, subject.recipe
    data = recipe.with_fields(r, recipe.open_data(r, options.split))
    wanted = sample_images.SampleSpec(data, recipe.reads(r), (), count, options.seed)
    batch, seeds = wanted.batch(range(count)), [options.seed + i for i in range(count)]
    scales = GUIDANCE if model.conditioner.can_hide else (1.0,)
    made = {}
    for scale in scales:
        for steps in STEPS:
            settings = replace(run.chosen(model, options), guidance_scale=scale, steps=steps)
            x = sample_images.draw(model, sample_images.fields(model, wanted.reads, batch), seeds, settings)
            made[scale, steps] = html.images(x)
    columns = [f"{steps} steps" for steps in STEPS]
    body = ""
    for i, caption in enumerate(batch.get("caption", [f"sample {i}" for i in range(count)])):
        rows = [(f"guidance {scale:g}", [made[scale, steps][i] for steps in STEPS]) for scale in scales]
        body += f'<p class="soft">{html.words(caption)}</p>{html.strips(rows, columns)}'
    yield html.section("Guidance and steps", "One prompt and one noise, over both settings.", body)


def numbers(figures: dict, protocol: dict) -> str:
    """Every figure, and how it was measured; intervals and what real pictures get stand beside the figure."""
    beside = ("_low", "_high", "_real")
    rows = [(name, told(value) + interval(figures, name), told(figures.get(f"{name}_real", "")), MEANING.get(name, ""))
            for name, value in figures.items() if not name.endswith(beside)]  # fmt: skip
    how = [(name, ", ".join(f"{k} {v}" for k, v in about.items()) if isinstance(about, dict) else about)
           for name, about in protocol.items()]  # fmt: skip
    head, kinds = ("figure", "value", "held-out pictures", "meaning"), ("name", "number", "number", "")
    body = html.table(head, rows, kinds) + "<h2>Protocol</h2>" + html.table(("what", "how"), how, ("name", ""))
    return html.section("Figures", "A number can be compared with another that has the same protocol.", body)


def told(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(told, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(figures: dict, name: str) -> str:
    low, high = (figures.get(f"{name}_{end}") for end in ("low", "high"))
    return f" ({told(low)} to {told(high)})" if low is not None else ""


def whole_recipe(r: object) -> str:
    """What differs from the defaults, then every field."""
    changed = [(field, str(config.to_dict(now))) for field, _, now in config.differences(type(r)(), r)]
    lines = (line.partition(" = ") for line in config.describe(r))
    every = html.table(("field", "value"), [(path, rest.strip()) for path, _, rest in lines], ("code", "code"))
    body = html.table(("field", "value"), changed, ("code", "code"))
    body += f"<details><summary>every field and its meaning</summary>{every}</details>"
    return html.section("Recipe", "What differs from the defaults.", body)


def captions(subject: EvalRun, split: str) -> list[str]:
    """What training's previews were drawn from where the recipe names no prompts: the first of the held-out data."""
    data = recipe.open_data(subject.recipe, split)
    batch = next(loader.sequential_batches(data, range(min(16, len(data))), 64), {})
    return batch.get("caption", [])


def device_of(subject: EvalRun) -> torch.device:
    return next(subject.autoencoder.buffers()).device
