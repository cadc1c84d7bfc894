"""How well the small runs on shapes do their tasks, on scenes that no run has seen; one arm per task.

python -m benchmarks.tasks RUN [--count 200] [--sampler NAME] [--steps N] [--guidance-scale 2 [--autoguide CHECKPOINT]]
                               [--guidance-interval 0.4,0.85] [--output FILE.json] [--pictures FOLDER]
python -m benchmarks.tasks --table       from benchmarks/results/tasks-*.json, into docs/tasks.md
"""

import argparse
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.larger import agreement, mosaic
from latentdiff import load
from latentdiff.autoencoder.perceptual import LPIPSConfig, build
from latentdiff.layers import images_to_float
from latentdiff.config import UserError, override
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import KINDS, Scene
from latentdiff.evaluation.image_metrics import psnr
from latentdiff.evaluation.stage_one import again
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe, with_fields
from latentdiff.training import checkpoint, image_grid, run_dir

BATCH = 40
SETTINGS = ("sampler", "steps", "guidance_scale", "guidance_interval")
Arm = tuple[dict, list[Tensor]]  # figures, and rows of pictures to look at


def words_of(doc: str) -> argparse.ArgumentParser:
    """What this measurement and that of real pictures are told alike."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--count", type=int, default=200, help="pictures, at most")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--table", action="store_true")
    return parser


def main() -> None:
    parser = words_of(__doc__)
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="instead of the recipe's")
    parser.add_argument("--autoguide", default="", help="a worse run, or an earlier checkpoint, to guide away from")
    options = parser.parse_args()
    if options.table:
        table(Path("benchmarks/results"), Path("docs/tasks.md"))
        return
    folder = run_dir.find_run(options.run)
    recipe, model = run_dir.read_recipe(folder, DiffusionRecipe), load.load_run(folder)
    asked = [f"{name}={value}" for name in SETTINGS if (value := getattr(options, name)) is not None]
    model.sampling = override(model.sampling, asked)
    if options.autoguide:
        model.guide_by(load.load_guide(options.autoguide))
    task = type(recipe.conditions[0]).__name__ if recipe.conditions else "uncond"
    if task not in ARMS:
        raise UserError(f"{folder.name} has the condition {task}; measured here: {', '.join(ARMS)}; text: evaluate.py")
    data = with_fields(recipe, ShapesDataset(recipe.data, "test"))
    items = [data.item(i, 2 * i) for i in range(min(options.count, len(data)))]
    figures, rows = ARMS[task](model, items, folder)
    trained = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    used = {name: getattr(model.sampling, name) for name in SETTINGS}
    figures = {"task": folder.name, "pictures": len(items), **used, "autoguide": Path(options.autoguide).name,
               "train_steps": recipe.train.steps,
               "train_minutes": max(row.get("seconds", 0) for row in trained) / 60, **figures}  # fmt: skip
    print(json.dumps(figures, indent=1))
    if options.output:
        checkpoint.write_json(options.output, figures)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        count = min(12, len(rows[0]))
        sheet = image_grid.grid(torch.cat([row[:count] for row in rows]), count, scale=max(1, 64 // rows[0].shape[-1]))
        sheet.save(options.pictures / f"{folder.name}.png")


def draw(model: LatentDiffusion, given: dict[str, Iterable], count: int, seed: int = 0) -> Tensor:
    """Pictures [count, 3, H, W]; given: field -> one item for each."""
    parts = []
    for start in range(0, count, BATCH):
        part = {name: values[start : start + BATCH] for name, values in given.items()}
        prompts = [""] * min(BATCH, count - start)
        parts.append(model.sample(prompts, seed=seed + start, fields=part))
    return torch.cat(parts)


def column(items: list[dict], name: str) -> list[Tensor]:
    return [torch.as_tensor(np.array(item[name])) for item in items]


def images(items: list[dict]) -> Tensor:
    return images_to_float(torch.stack(column(items, "image")))


def share(verdicts: Iterable[bool]) -> float:
    return float(np.mean([bool(v) for v in verdicts]))


# ---- one arm per task


def classes(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """The reader finds one object, and it is of the class."""
    labels = column(items, "label")
    x = draw(model, {"label": torch.stack(labels)}, len(items))
    seen = [reader.detect(picture.permute(1, 2, 0).double().numpy() / 2 + 0.5) for picture in x]
    names = list(KINDS)
    right = [s is not None and [t.kind for t in s.objects] == [names[k]] for s, k in zip(seen, labels)]
    clean = [reader.read_scene(picture) is not None for picture in x]
    shown = torch.cat([x[[i for i, k in enumerate(labels) if k == kind][:3]] for kind in range(4)])
    return {"class_accuracy": share(right), "readable": share(clean)}, [shown]


def layouts(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """Every box against the object that the reader finds there: intersection over union, and the class."""
    boxes = column(items, "boxes")
    x = draw(model, {"boxes": boxes}, len(items))
    ious, right = [], []
    for picture, wanted in zip(x, boxes):
        scene = reader.detect(picture.permute(1, 2, 0).double().numpy() / 2 + 0.5)
        side, names = picture.shape[-1], list(KINDS)
        found = [(*(v / side for v in t.box()), names.index(t.kind)) for t in scene.objects] if scene else []
        found += [(0.0, 0.0, 0.0, 0.0, -1)] * (len(wanted) - len(found))
        best = max(
            itertools.permutations(found, len(wanted)),
            key=lambda order: sum(overlap(box, other) for box, other in zip(wanted.tolist(), order)),
        )
        ious += [overlap(box, other) for box, other in zip(wanted.tolist(), best)]
        right += [box[4] == other[4] for box, other in zip(wanted.tolist(), best)]
    return {"box_iou": float(np.mean(ious)), "box_class_right": share(right)}, [images(items), x]


def overlap(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    a, b = np.array(a), np.array(b)
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    inner = float(sides.clip(0).prod())
    return inner / max(float((a[2:4] - a[:2]).prod() + (b[2:4] - b[:2]).prod()) - inner, 1e-9)


def maps(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """The map of what the reader sees against the map that was given; larger ones are scenes side by side."""
    segmentation = torch.stack(column(items, "segmentation"))
    x = draw(model, {"segmentation": segmentation}, len(items))
    side = segmentation.shape[1]
    joined = agreement(torch.cat(list(x), dim=2), torch.cat(list(segmentation), dim=1).long(), side)
    figures = {"iou_1x": joined["iou"]}
    for times in (2, 4):
        wanted = mosaic(folder, times * side)
        large = [model.sample(fields={"segmentation": wanted[None]}, seed=seed)[0] for seed in range(4)]
        seen = [agreement(picture, wanted.long(), side)["iou"] for picture in large]
        figures[f"iou_{times}x"] = float(np.mean(seen))
    palette = torch.linspace(-1, 1, int(segmentation.max()) + 1)[segmentation.long()]
    return figures, [palette[:, None].expand(-1, 3, -1, -1), x]


def enlarged(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """LPIPS to the true picture beside that of bicubic enlargement, and whether it becomes the small one again."""
    small, truth = torch.stack(column(items, "low_res")), images(items)
    x = draw(model, {"low_res": small}, len(items))
    bicubic = torch.from_numpy(
        np.stack([np.array(Image.fromarray(s.numpy()).resize(truth.shape[:1:-1], Image.BICUBIC)) for s in small])
    )
    bicubic = images_to_float(bicubic)
    distance, figures = build(LPIPSConfig(backbone="squeezenet")), {}
    again = images_to_float(torch.from_numpy(np.stack([reduced(picture, small.shape[1:3]) for picture in x])))
    figures["psnr_made_small_again"] = psnr(again, images_to_float(small)).mean().item()
    for name, picture in (("drawn", x), ("bicubic", bicubic)):
        with torch.no_grad():
            figures[f"lpips_{name}"] = distance(picture, truth).mean().item()
        figures[f"psnr_{name}"] = psnr(picture, truth).mean().item()
    return figures, [F.interpolate(images_to_float(small), truth.shape[2:]), bicubic, x, truth]


def reduced(picture: Tensor, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(image_grid.to_uint8(picture[None])[0]).resize(size[::-1], Image.BICUBIC))


def filled(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """Known pixels to the bit, a scene that the reader takes for a drawn one, other fillings for other seeds."""
    given = {name: torch.stack(column(items, name)) for name in ("image", "mask")}
    first, second = (draw(model, given, len(items), seed) for seed in (0, 10_000))
    hole, truth = given["mask"] > 0, images(items)
    kept = all((image_grid.to_uint8(x)[~hole] == given["image"].numpy()[~hole]).all() for x in (first, second))
    mean = torch.stack([t[:, ~h].mean(1) for t, h in zip(truth, hole)])[:, :, None, None]
    plain = torch.where(hole[:, None], mean.expand_as(truth), truth)
    differs = ((first - second).abs().mean(1) * hole).sum((1, 2)) / hole.sum((1, 2)) * 127.5
    figures = {"known_pixels_exact": kept, "valid_scenes": share(reader.read_scene(x) is not None for x in first),
               "valid_mean_fill": share(reader.read_scene(x) is not None for x in plain),
               "hole_share": hole.float().mean().item(), "mean_difference_of_seeds": differs.mean().item(),
               "share_that_differs": share(differs > 2)}  # fmt: skip
    shown = torch.where(hole[:, None], torch.tensor(-0.3), truth)
    return figures, [shown, first, second, truth]


@torch.no_grad()
def unprompted(model: LatentDiffusion, items: list[dict], folder: Path) -> Arm:
    """Readable scenes, attributes as often as in the data, and no copies of training pictures."""
    count = len(items)
    x, real = draw(model, {}, count), images(items)
    scenes = [reader.read_scene(picture) for picture in x]
    config = run_dir.read_recipe(folder, DiffusionRecipe).data
    train = ShapesDataset(config, "train")
    drawn, known = histograms([s for s in scenes if s]), histograms([train.scene(i) for i in range(4000)])
    copies = torch.cat([again(model.autoencoder, part) for part in real.split(BATCH)])
    figures = {"readable": share(s is not None for s in scenes)}
    for name, others in (("in_the_data", real), ("reconstructed", copies)):
        figures[f"readable_{name}"] = share(reader.read_scene(picture) is not None for picture in others)
    distances = {name: distance(drawn[name], known[name]) for name in known}
    figures |= {f"histogram_{name}": value for name, value in distances.items()}
    figures["histogram_distance"] = float(np.mean(list(distances.values())))
    seen = images_to_float(torch.from_numpy(np.stack([train.item(i, 0)["image"] for i in range(len(train))])))
    near, far = (torch.cdist(p.flatten(1), seen.flatten(1)).min(1).values.mean().item() for p in (x, real))
    figures["nearest_neighbour_ratio"] = near / far
    return figures, [x[:12], x[12:24]]


def histograms(scenes: list[Scene]) -> dict[str, Counter]:
    things = [thing for scene in scenes for thing in scene.objects]
    told = {"count": [len(s.objects) for s in scenes], "background": [s.background for s in scenes]}
    return {name: Counter(values) for name, values in (
        told | {name: [getattr(t, name) for t in things] for name in ("kind", "colour", "size")}).items()}  # fmt: skip


def distance(a: Counter, b: Counter) -> float:
    """Total variation: 0 for the same shares, 1 for none in common."""
    return sum(abs(a[k] / max(a.total(), 1) - b[k] / b.total()) for k in a | b) / 2


ARMS: dict[str, Callable[[LatentDiffusion, list[dict], Path], Arm]] = {
    "Label": classes, "Layout": layouts, "Semantic": maps, "LowRes": enlarged, "Masked": filled, "uncond": unprompted,
}  # fmt: skip


# ---- the table in the docs

BARS = {  # task -> figure, the bar, whether more is better
    "text": (("prompt_accuracy", 0.7, True), ("prompt_accuracy_held_out", None, True)),
    "class": (("class_accuracy", 0.95, True), ("readable", None, True)),
    "layout": (("box_iou", 0.6, True), ("box_class_right", 0.9, True)),
    "semantic": (("iou_1x", 0.6, True), ("iou_2x", 0.5, True), ("iou_4x", 0.5, True)),
    "superres": (("lpips_drawn", "lpips_bicubic", False), ("psnr_made_small_again", 30.0, True)),
    "inpaint": (("known_pixels_exact", True, True), ("valid_scenes", 0.8, True), ("share_that_differs", None, True)),
    "uncond": (("readable", 0.8, True), ("histogram_distance", 0.15, False), ("nearest_neighbour_ratio", None, True)),
}
BARS["pixel"] = BARS["uncond"]
START, END = "<!-- made by python -m benchmarks.tasks --table -->", "<!-- end -->"


def table(results: Path, page: Path) -> None:
    """The lines between the marks of the page, anew from the results."""
    lines = ["| run | training | figure | reached | bar | |", "|---|---|---|---|---|---|"]
    for task, bars in BARS.items():
        path = results / ("demo.json" if task == "text" else f"tasks-{task}.json")  # that of evaluate.py
        found = json.loads(path.read_text()) if path.exists() else {}
        about = f"{found.get('train_steps', found.get('step')):,} steps" if found else "not yet"
        about += f", {found['train_minutes']:.0f} min" if "train_minutes" in found else ""
        about += ", guided away from an early checkpoint" if found.get("autoguide") else ""
        for i, (name, bar, more) in enumerate(bars):
            value, least = found.get(name), found.get(bar) if isinstance(bar, str) else bar
            met = "" if None in (value, least) else "yes" if (value >= least if more else value <= least) else "**no**"
            sign = "" if least is None else ("at least " if more else "at most ") + told(least)
            lines.append(f"| {task if not i else ''} | {about if not i else ''} | {name.replace('_', ' ')} "
                         f"| {told(value)} | {sign} | {met} |")  # fmt: skip
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + "\n".join([START, "", *lines, "", END]) + rest.partition(END)[2])
    print("\n".join(lines))


def told(value: float | bool | None) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else f"{value:.3g}"


if __name__ == "__main__":
    main()
