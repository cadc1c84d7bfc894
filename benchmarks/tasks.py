"""How well the small runs on drawn shapes do their tasks, on unseen scenes.

python -m benchmarks tasks RUN [--count 200] [--sampler NAME] [--steps N] [--guidance-scale 2 [--autoguide CHECKPOINT]]
                               [--guidance-interval 0.4,0.85] [--output FILE.json] [--images FOLDER]
python -m benchmarks tasks --table       write the table of docs/tasks.md from benchmarks/results/tasks-*.json
"""

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

from benchmarks.common import task_table
from benchmarks.common.task_options import argument_parser
from benchmarks.large_images import agreement, mosaic
from latentdiff.autoencoder.perceptual import LPIPSConfig, build
from latentdiff.config import UserError, override, short_name
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import KINDS, Scene
from latentdiff.evaluation.image_metrics import psnr
from latentdiff.evaluation.stage_one import reconstruct
from latentdiff.layers import images_to_float
from latentdiff.load import load_weak_model
from latentdiff.recipe import DiffusionRecipe, with_condition_fields
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import checkpoint, image_grid, run_dir

BATCH_SIZE = 40
SETTINGS = ("sampler", "steps", "guidance_scale", "guidance_interval")
Arm = tuple[dict, list[Tensor]]  # metrics, and sets of images for a grid


def main() -> None:
    parser = argument_parser(__doc__)
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", help="default: that of the recipe")
    parser.add_argument("--autoguide", default="", help="the weak model of autoguidance: a run or a checkpoint")
    options = parser.parse_args()
    if options.table:
        task_table.write_table(Path("benchmarks/results"), Path("docs/tasks.md"))
        return
    folder = run_dir.find_run(options.run)
    recipe, pipeline = run_dir.read_recipe(folder, DiffusionRecipe), load_pipeline(folder)
    model = pipeline.model
    changes = [f"{name}={value}" for name in SETTINGS if (value := getattr(options, name)) is not None]
    model.sampling = override(model.sampling, changes)
    if options.autoguide:
        model.set_weak_model(load_weak_model(options.autoguide))
    task = short_name(type(recipe.conditions[0])) if recipe.conditions else "uncond"
    if task not in ARMS:
        raise UserError(
            f"{folder.name} has the condition {task}; it must be one of {', '.join(ARMS)}. For text use evaluate.py"
        )
    data = with_condition_fields(ShapesDataset(recipe.data, "test"), recipe.conditions, recipe.derived_fields)
    items = [data.item(i, 2 * i) for i in range(min(options.count, len(data)))]
    metrics, grid = ARMS[task](pipeline, items, folder)
    log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    settings = {name: getattr(model.sampling, name) for name in SETTINGS}
    metrics = {"task": folder.name, "images": len(items), **settings, "autoguide": Path(options.autoguide).name,
               "train_steps": recipe.train.steps,
               "train_minutes": max(line.get("seconds", 0) for line in log) / 60, **metrics}  # fmt: skip
    print(json.dumps(metrics, indent=1))
    if options.output:
        checkpoint.write_json(options.output, metrics)
    if options.images:
        options.images.mkdir(parents=True, exist_ok=True)
        count = min(12, len(grid[0]))
        sheet = image_grid.grid(torch.cat([x[:count] for x in grid]), count, scale=max(1, 64 // grid[0].shape[-1]))
        sheet.save(options.images / f"{folder.name}.png")


def sample(pipeline: Pipeline, fields: dict[str, Iterable], count: int, seed: int = 0) -> Tensor:
    """Images [count, 3, H, W]; fields: name -> one item per image."""
    x = []
    for start in range(0, count, BATCH_SIZE):
        batch = {name: values[start : start + BATCH_SIZE] for name, values in fields.items()}
        prompts = [""] * min(BATCH_SIZE, count - start)
        x.append(pipeline.sample(prompts, seed=seed + start, fields=batch))
    return torch.cat(x)


def column(items: list[dict], name: str) -> list[Tensor]:
    return [torch.as_tensor(np.array(item[name])) for item in items]


def images(items: list[dict]) -> Tensor:
    return images_to_float(torch.stack(column(items, "image")))


def fraction(values: Iterable[bool]) -> float:
    return float(np.mean([bool(v) for v in values]))


# ---- one arm per task


def classes(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """The scene reader finds exactly one object, of the class."""
    labels = column(items, "label")
    x = sample(pipeline, {"label": torch.stack(labels)}, len(items))
    scenes = [reader.detect(image.permute(1, 2, 0).double().numpy() / 2 + 0.5) for image in x]
    names = list(KINDS)
    correct = [s is not None and [t.kind for t in s.objects] == [names[k]] for s, k in zip(scenes, labels)]
    readable = [reader.read_scene(image) is not None for image in x]
    grid = torch.cat([x[[i for i, k in enumerate(labels) if k == kind][:3]] for kind in range(4)])
    return {"class_accuracy": fraction(correct), "readable": fraction(readable)}, [grid]


def layouts(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """Each box against the object that the scene reader finds there: intersection over union, and the class."""
    boxes = column(items, "boxes")
    x = sample(pipeline, {"boxes": boxes}, len(items))
    ious, correct = [], []
    for image, targets in zip(x, boxes):
        scene = reader.detect(image.permute(1, 2, 0).double().numpy() / 2 + 0.5)
        side, names = image.shape[-1], list(KINDS)
        detected = [(*(v / side for v in t.box()), names.index(t.kind)) for t in scene.objects] if scene else []
        detected += [(0.0, 0.0, 0.0, 0.0, -1)] * (len(targets) - len(detected))
        best = max(
            itertools.permutations(detected, len(targets)),
            key=lambda order: sum(box_iou(box, other) for box, other in zip(targets.tolist(), order)),
        )
        ious += [box_iou(box, other) for box, other in zip(targets.tolist(), best)]
        correct += [box[4] == other[4] for box, other in zip(targets.tolist(), best)]
    return {"box_iou": float(np.mean(ious)), "box_class_accuracy": fraction(correct)}, [images(items), x]


def box_iou(a: Iterable[float], b: Iterable[float]) -> float:
    """Intersection over union of two boxes x0, y0, x1, y1."""
    a, b = np.array(a), np.array(b)
    sides = np.minimum(a[2:4], b[2:4]) - np.maximum(a[:2], b[:2])
    intersection = float(sides.clip(0).prod())
    union = float((a[2:4] - a[:2]).prod() + (b[2:4] - b[:2]).prod()) - intersection
    return intersection / max(union, 1e-9)


def maps(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """The map that the scene reader detects against the input map; larger maps are scenes side by side."""
    segmentation = torch.stack(column(items, "segmentation"))
    x = sample(pipeline, {"segmentation": segmentation}, len(items))
    side = segmentation.shape[1]
    joined = agreement(torch.cat(list(x), dim=2), torch.cat(list(segmentation), dim=1).long(), side)
    metrics = {"iou_1x": joined["iou"]}
    for times in (2, 4):
        large_map = mosaic(folder, times * side)
        large = [pipeline.sample(fields={"segmentation": large_map[None]}, seed=seed)[0] for seed in range(4)]
        ious = [agreement(image, large_map.long(), side)["iou"] for image in large]
        metrics[f"iou_{times}x"] = float(np.mean(ious))
    palette = torch.linspace(-1, 1, int(segmentation.max()) + 1)[segmentation.long()]
    return metrics, [palette[:, None].expand(-1, 3, -1, -1), x]


def super_resolution(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """LPIPS to the true image beside that of bicubic upsampling, and PSNR of the downsampled result to the input."""
    low_res, truth = torch.stack(column(items, "low_res")), images(items)
    x = sample(pipeline, {"low_res": low_res}, len(items))
    bicubic = torch.from_numpy(
        np.stack([np.array(Image.fromarray(s.numpy()).resize(truth.shape[:1:-1], Image.BICUBIC)) for s in low_res])
    )
    bicubic = images_to_float(bicubic)
    lpips, metrics = build(LPIPSConfig(backbone="squeezenet")), {}
    downsampled = images_to_float(torch.from_numpy(np.stack([downsample(image, low_res.shape[1:3]) for image in x])))
    metrics["psnr_low_res"] = psnr(downsampled, images_to_float(low_res)).mean().item()
    for name, image in (("sampled", x), ("bicubic", bicubic)):
        with torch.no_grad():
            metrics[f"lpips_{name}"] = lpips(image, truth).mean().item()
        metrics[f"psnr_{name}"] = psnr(image, truth).mean().item()
    return metrics, [F.interpolate(images_to_float(low_res), truth.shape[2:]), bicubic, x, truth]


def downsample(image: Tensor, size: tuple[int, int]) -> np.ndarray:
    return np.array(Image.fromarray(image_grid.to_uint8(image[None])[0]).resize(size[::-1], Image.BICUBIC))


def inpainting(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """Known pixels unchanged, valid scenes, and other results for other seeds."""
    fields = {name: torch.stack(column(items, name)) for name in ("image", "mask")}
    first, second = (sample(pipeline, fields, len(items), seed) for seed in (0, 10_000))
    mask, truth = fields["mask"] > 0, images(items)
    exact = all((image_grid.to_uint8(x)[~mask] == fields["image"].numpy()[~mask]).all() for x in (first, second))
    mean = torch.stack([t[:, ~m].mean(1) for t, m in zip(truth, mask)])[:, :, None, None]
    mean_filled = torch.where(mask[:, None], mean.expand_as(truth), truth)
    difference = ((first - second).abs().mean(1) * mask).sum((1, 2)) / mask.sum((1, 2)) * 127.5
    metrics = {"known_pixels_exact": exact,
               "valid_scenes": fraction(reader.read_scene(x) is not None for x in first),
               "valid_scenes_mean_fill": fraction(reader.read_scene(x) is not None for x in mean_filled),
               "mask_fraction": mask.float().mean().item(), "mean_seed_difference": difference.mean().item(),
               "different_fraction": fraction(difference > 2)}  # fmt: skip
    masked = torch.where(mask[:, None], torch.tensor(-0.3), truth)
    return metrics, [masked, first, second, truth]


@torch.no_grad()
def unconditional(pipeline: Pipeline, items: list[dict], folder: Path) -> Arm:
    """Valid scenes, attribute frequencies like those of the data, and no copies of training images."""
    count = len(items)
    x, real = sample(pipeline, {}, count), images(items)
    scenes = [reader.read_scene(image) for image in x]
    config = run_dir.read_recipe(folder, DiffusionRecipe).data
    train = ShapesDataset(config, "train")
    sampled, data = histograms([s for s in scenes if s]), histograms([train.scene(i) for i in range(4000)])
    reconstructed = torch.cat([reconstruct(pipeline.autoencoder, batch) for batch in real.split(BATCH_SIZE)])
    metrics = {"readable": fraction(s is not None for s in scenes)}
    for name, others in (("data", real), ("reconstructed", reconstructed)):
        metrics[f"readable_{name}"] = fraction(reader.read_scene(image) is not None for image in others)
    distances = {name: total_variation(sampled[name], data[name]) for name in data}
    metrics |= {f"histogram_{name}": value for name, value in distances.items()}
    metrics["histogram_distance"] = float(np.mean(list(distances.values())))
    train_x = images_to_float(torch.from_numpy(np.stack([train.item(i, 0)["image"] for i in range(len(train))])))
    near, far = (torch.cdist(y.flatten(1), train_x.flatten(1)).min(1).values.mean().item() for y in (x, real))
    metrics["nearest_neighbor_ratio"] = near / far
    return metrics, [x[:12], x[12:24]]


def histograms(scenes: list[Scene]) -> dict[str, Counter]:
    objects = [shape for scene in scenes for shape in scene.objects]
    values = {"count": [len(s.objects) for s in scenes], "background": [s.background for s in scenes]}
    values |= {name: [getattr(shape, name) for shape in objects] for name in ("kind", "colour", "size")}
    return {name: Counter(x) for name, x in values.items()}


def total_variation(a: Counter, b: Counter) -> float:
    """The total variation distance of two histograms: 0 if equal, 1 if disjoint."""
    return sum(abs(a[k] / max(a.total(), 1) - b[k] / b.total()) for k in a | b) / 2


ARMS: dict[str, Callable[[Pipeline, list[dict], Path], Arm]] = {
    "Label": classes, "Layout": layouts, "Semantic": maps, "LowRes": super_resolution, "Masked": inpainting,
    "uncond": unconditional,
}  # fmt: skip


if __name__ == "__main__":
    main()
