"""report.html: the recipe of a run, its training curves, samples and metrics, in one file."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from latentdiff import config
from latentdiff.data import loader
from latentdiff.evaluation import distances, html, image_sets, sample_images, stage_one
from latentdiff.evaluation import run as evaluation
from latentdiff.evaluation.descriptions import DESCRIPTIONS, HEADLINES
from latentdiff.evaluation.run import EvalRun
from latentdiff.recipe import open_data
from latentdiff.training import image_grid
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path
from latentdiff.training.log import read_metrics

CURVES = ("loss", "val_loss", "text_gap", "nll", "psnr", "ssim", "lpips", "kl", "perplexity", "disc_loss", "grad_norm")
GUIDANCE_SCALES, STEPS = (1.0, 2.0, 4.0, 8.0), (5, 10, 20, 50)


@torch.no_grad()
def write(path: Path, run: EvalRun, metrics: dict, protocol: dict, options: Namespace, world: World) -> None:
    """Write the report; called by one process."""
    sections = [header(run, metrics), *curves(run.folder), reconstructions(run, options, world)]
    if run.pipeline is not None:
        single_process = World(0, 1, world.device)  # the other ranks do not call this function
        sections += [*training_samples(run), *samples(run, options, single_process), *settings_grid(run, options)]
    sections += [metrics_table(metrics, protocol), recipe_table(run.recipe)]
    with atomic_path(path) as tmp:
        tmp.write_text(html.page(f"{run.folder.name}: report", "\n".join(sections)))


def header(run: EvalRun, metrics: dict) -> str:
    """The name of the run, its size, and its most important metrics."""
    kind, module = ("latent diffusion model", run.pipeline) if run.pipeline else ("autoencoder", run.autoencoder)
    height, width = run.recipe.data.image_size
    size = sum(p.numel() for p in module.parameters())
    text = f"{kind}, {size:,} parameters, {height} × {width} pixels, step {metrics['step']:,}"
    headlines = [(name, form.format(metrics[key])) for key, (name, form) in HEADLINES.items() if key in metrics]
    cards = "".join(f"<div><b>{html.escape(x)}</b><span>{html.escape(name)}</span></div>" for name, x in headlines)
    head = f'<h1>{html.escape(run.folder.name)}</h1>\n<p class="soft">{html.escape(text)}</p>'
    return f'{head}\n<div class="cards">{cards}</div>'


def curves(folder: Path) -> Iterator[str]:
    history = read_metrics(folder / "metrics.jsonl")
    series = {name: [(line["step"], line[name]) for line in history if line.get(name) is not None] for name in CURVES}
    plots = [html.curve(name, points) for name, points in series.items() if len(points) > 1]
    if plots:
        body = f'<div class="curves">{"".join(plots)}</div>'
        yield html.section("Training", "Logged values (thin) and their running mean (thick).", body)


def reconstructions(run: EvalRun, options: Namespace, world: World, count: int = 8) -> str:
    """Images, their reconstructions and the difference."""
    data = open_data(run.recipe, options.split)
    x = loader.images(next(loader.sequential_batches(data, range(min(count, len(data))), count)), world.device)
    y = stage_one.reconstruct(run.autoencoder, x)
    rows = [("image", image_grid.to_uint8(x)), ("reconstruction", image_grid.to_uint8(y)),
            ("difference × 4", image_grid.to_uint8((y - x).abs() * 4 - 1))]  # fmt: skip
    text = f"The first images of {options.split}, encoded and decoded."
    return html.section("Reconstructions", text, html.image_table(rows, [f"{i}" for i in range(len(x))]))


def training_samples(run: EvalRun, prompts: int = 6, steps: int = 7) -> Iterator[str]:
    """The preview samples of training, cut out of samples/<step>.png: a row per prompt, over the steps."""
    files = sorted(p for p in (run.folder / "samples").glob("*.png") if p.stem.isdigit())
    if not files:
        return
    files = [files[i] for i in sorted({round(i) for i in np.linspace(0, len(files) - 1, min(steps, len(files)))})]
    height, width = run.recipe.data.image_size
    grids = [grid_images(Image.open(file).convert("RGB"), height, width) for file in files]
    captions = run.recipe.preview_prompts or validation_captions(run)
    rows = [(captions[i] if i < len(captions) else f"image {i}", [images[i] for images in grids])
            for i in range(min(prompts, *map(len, grids)))]  # fmt: skip
    text = "The same prompts from the same noise, sampled during training."
    columns = [f"step {int(file.stem):,}" for file in files]
    yield html.section("During training", text, html.image_table(rows, columns))


def grid_images(grid: Image.Image, height: int, width: int, gap: int = 2) -> list[np.ndarray]:
    """The images of a grid of image_grid.grid, row by row, at their own size."""
    scale, pixels = max(1, 96 // width), np.asarray(grid)
    tops = range(gap, pixels.shape[0] - height * scale - gap + 1, height * scale + gap)
    lefts = range(gap, pixels.shape[1] - width * scale - gap + 1, width * scale + gap)
    crops = [pixels[top : top + height * scale : scale, left : left + width * scale : scale]
             for top in tops for left in lefts]  # fmt: skip
    return [np.ascontiguousarray(crop) for crop in crops]


def samples(run: EvalRun, options: Namespace, world: World, count: int = 32) -> Iterator[str]:
    """The first samples, not selected, and the nearest training images of some of them."""
    data, spec, *_ = evaluation.open_samples(run, options, world)
    count = min(count, spec.count)
    images = [data.item(i, 0)["image"] for i in range(count)]
    captions = [""] * count if options.samples else spec.batch(range(count)).get("caption", [""] * count)
    body = html.gallery(images, captions)
    yield html.section("Samples", "The first samples, not selected, with their captions.", body)
    train = open_data(run.recipe, "train")
    extractor, n = evaluation.open_extractor(run, options, world), min(len(train), 5000)
    sample_features = image_sets.extract(extractor, data, min(8, count), world).features
    train_features = image_sets.extract(extractor, train, n, world).features
    nearest = distances.nearest_neighbors(sample_features, train_features, 5)
    rows = []
    for i, (distance, indices) in enumerate(zip(nearest.distance.tolist(), nearest.index.tolist())):
        neighbors = [train.item(j, 0)["image"] for j in indices]
        rows.append((f"sample {i}, distance {distance[0]:.2f}", [images[i], *neighbors]))
    text = f"The nearest of {n:,} training images, by the features of {extractor.metadata['name']}."
    yield html.section("Nearest neighbors", text, html.image_table(rows, ["sample", *(f"{i + 1}." for i in range(5))]))


def settings_grid(run: EvalRun, options: Namespace, count: int = 2) -> Iterator[str]:
    """The same conditions and noise, over guidance scales (rows) and numbers of steps (columns)."""
    spec = evaluation.sample_spec(run, options)._replace(captions=())
    settings = evaluation.sampling_settings(run.pipeline, options)
    scales = GUIDANCE_SCALES if run.pipeline.conditioner.can_drop else (1.0,)
    images = {}
    for scale in scales:
        for steps in STEPS:
            changed = replace(settings, guidance_scale=scale, steps=steps)
            x = sample_images.sample_batch(run.pipeline, spec, range(count), changed)
            images[scale, steps] = image_grid.to_uint8(x)
    columns, body = [f"{steps} steps" for steps in STEPS], ""
    for i, caption in enumerate(spec.batch(range(count)).get("caption", [f"sample {i}" for i in range(count)])):
        rows = [(f"guidance {scale:g}", [images[scale, steps][i] for steps in STEPS]) for scale in scales]
        body += f'<p class="soft">{html.escape(caption)}</p>{html.image_table(rows, columns)}'
    yield html.section("Guidance and steps", "The same prompt and noise with other settings.", body)


def metrics_table(metrics: dict, protocol: dict) -> str:
    """All metrics, with intervals and the values of held-out real images, and how they were measured."""
    suffixes = ("_low", "_high", "_real")
    rows = [(name, text_of(x) + interval(metrics, name), text_of(metrics.get(f"{name}_real", "")),
             DESCRIPTIONS.get(name, "")) for name, x in metrics.items() if not name.endswith(suffixes)]  # fmt: skip
    settings = [(name, ", ".join(f"{k} {v}" for k, v in x.items()) if isinstance(x, dict) else x)
                for name, x in protocol.items()]  # fmt: skip
    body = html.table(("metric", "value", "held-out images", "description"), rows, ("name", "number", "number", ""))
    body += "<h2>Protocol</h2>" + html.table(("metrics", "measured with"), settings, ("name", ""))
    return html.section("Metrics", "Compare only numbers that were measured with the same protocol.", body)


def text_of(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def interval(metrics: dict, name: str) -> str:
    low, high = (metrics.get(f"{name}_{end}") for end in ("low", "high"))
    return f" ({text_of(low)} to {text_of(high)})" if low is not None else ""


def recipe_table(recipe: object) -> str:
    """The fields that differ from the defaults, then all fields."""
    changed = [(field, str(config.to_dict(value))) for field, _, value in config.differences(type(recipe)(), recipe)]
    lines = (line.partition(" = ") for line in config.describe(recipe))
    fields = html.table(("field", "value"), [(path, text.strip()) for path, _, text in lines], ("code", "code"))
    body = html.table(("field", "value"), changed, ("code", "code"))
    body += f"<details><summary>all fields and their meaning</summary>{fields}</details>"
    return html.section("Recipe", "Fields that differ from the defaults.", body)


def validation_captions(run: EvalRun) -> list[str]:
    """The captions of the preview samples, if the recipe names no prompts: the first of the validation data."""
    data = open_data(run.recipe, "val")
    return next(loader.sequential_batches(data, range(min(16, len(data))), 64), {}).get("caption", [])
