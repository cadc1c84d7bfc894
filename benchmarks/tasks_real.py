"""How well runs on photographs do their tasks on held-out images, beside a simple baseline and an upper bound.

python -m benchmarks tasks_real RUN [--split test] [--count 200] [--output FILE.json] [--images FOLDER]
python -m benchmarks tasks_real --table       write the table of docs/tasks.md from benchmarks/results/tasks-real-*.json

Maps and boxes are detected by a small segmentation network, trained on the real training images.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.common.classifier_training import optimizer_step
from benchmarks.common.task_options import argument_parser
from benchmarks.common.task_table import replace_section
from benchmarks.tasks import Arm, column, images, sample
from latentdiff import recipe
from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.perceptual import LPIPSConfig, build
from latentdiff.config import short_name
from latentdiff.data.fields import ConditionFields
from latentdiff.evaluation import distances, features
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.evaluation.stage_one import masked_lpips, reconstruct
from latentdiff.layers import images_to_float
from latentdiff.recipe import DiffusionRecipe, with_condition_fields
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import checkpoint, image_grid, optim, run_dir
from latentdiff.training.distributed import init_distributed
from latentdiff.training.log import read_metrics
from latentdiff.training.settings import TrainConfig

SEGMENTATION = TrainConfig(steps=1000, batch_size=16, lr=2e-3, lr_schedule="cosine", warmup_steps=50)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--split", default="test", help="the held-out images: test or val")
    options = parser.parse_args()
    if options.table:
        write_table(Path("benchmarks/results"), Path("docs/tasks.md"))
        return
    folder = run_dir.find_run(options.run)
    r, pipeline = run_dir.read_recipe(folder, DiffusionRecipe), load_pipeline(folder)
    train, held_out = (with_condition_fields(recipe.open_data(r, split), r.conditions, r.derived_fields)
                       for split in ("train", options.split))  # fmt: skip
    items = [held_out.item(i, 2 * i) for i in range(min(options.count, len(held_out)))]  # an even key does not flip
    metrics, grids = ARMS[short_name(type(r.conditions[0]))](pipeline, items, train)
    seconds = [read_metrics(f / "metrics.jsonl")[-1]["seconds"] for f in (run_dir.find_run(r.autoencoder.path), folder)]
    head = {"task": folder.name, "images": len(items), "split": options.split, "train_steps": r.train.steps,
            "stage_minutes": [s / 60 for s in seconds]}  # fmt: skip
    print(json.dumps(head | metrics, indent=1))
    if options.output:
        checkpoint.write_json(options.output, head | metrics)
    for name, x in grids.items() if options.images else ():
        image_grid.save_grid(x[:24], options.images / f"{folder.name}-{name}.png", columns=8)


# ---- one arm per task: metric -> value for samples, baseline and upper bound


def super_resolution(pipeline: Pipeline, items: list[dict], train: ConditionFields) -> Arm:
    """Baseline: bicubic upsampling; upper bound: the autoencoder's reconstruction of the true image."""
    low_res, truth = torch.stack(column(items, "low_res")), images(items)
    size = (truth.shape[3], truth.shape[2])
    bicubic = np.stack([np.array(Image.fromarray(s.numpy()).resize(size, Image.BICUBIC)) for s in low_res])
    x = {
        "sampled": sample(pipeline, {"low_res": low_res}, len(items)),
        "baseline": images_to_float(torch.from_numpy(bicubic)),
        "upper_bound": reconstruct_all(pipeline, truth),
    }
    lpips = build(LPIPSConfig(backbone="squeezenet"))
    metrics = {"baseline": "bicubic upsampling", "upper_bound": "reconstruction of the true image"}
    for name, metric in {"psnr": psnr, "ssim": ssim, "lpips": lambda x, y: lpips(y, x).flatten()}.items():
        metrics[name] = {arm: batched_mean(metric, truth, y) for arm, y in x.items()}
    return metrics, {"sampled": x["sampled"], "true": truth, "baseline": x["baseline"]}


def inpainting(pipeline: Pipeline, items: list[dict], train: ConditionFields) -> Arm:
    """In the masked region only. Baseline: the mean of the known pixels; upper bound: the reconstruction."""
    fields = {name: torch.stack(column(items, name)) for name in ("image", "mask")}
    truth, mask = images(items), (fields["mask"] > 0).float()[:, None]  # [B, 1, H, W]
    mean = (truth * (1 - mask)).sum((2, 3), keepdim=True) / (1 - mask).sum((2, 3), keepdim=True)
    x = {
        "sampled": sample(pipeline, fields, len(items)),
        "baseline": mean,
        "upper_bound": reconstruct_all(pipeline, truth),
    }
    x = {arm: mask * y + (1 - mask) * truth for arm, y in x.items()}
    lpips = build(LPIPSConfig(backbone="squeezenet"))
    metrics = {"baseline": "mean of the known pixels", "upper_bound": "reconstruction of the true image",
               "mask_fraction": mask.mean().item()}  # fmt: skip
    for name, metric in {
        "masked_lpips": lambda x, y, m: masked_lpips(lpips, x, y, m),
        "masked_l1": lambda x, y, m: ((x - y).abs() * m).sum((1, 2, 3)) / m.sum((1, 2, 3)) / 6,  # of a range of 0..1
    }.items():
        metrics[name] = {arm: batched_mean(metric, truth, y, mask) for arm, y in x.items()}
    return metrics, {"sampled": x["sampled"], "true": truth, "masked": truth * (1 - mask)}


def maps(pipeline: Pipeline, items: list[dict], train: ConditionFields) -> Arm:
    """The detected map against the input map. Baseline: the training image with the nearest map."""
    name = train.reads[0]
    classes = train.classes[name] + (name == "boxes")
    train_x, train_maps = images_and_maps(
        [train.item(i, 2 * i + flip) for flip in (0, 1) for i in range(len(train))], name
    )
    truth, targets = images_and_maps(items, name)
    network = train_segmentation(train_x, train_maps, classes)
    nearest = torch.stack([(train_maps == target).float().mean((1, 2)).argmax() for target in targets])
    samples = sample(pipeline, {name: column(items, name)}, len(items))
    x = {"sampled": samples, "baseline": train_x[nearest], "upper_bound": truth}
    metrics = {"baseline": "training image with the nearest map", "upper_bound": "the held-out images"}
    detected = {arm: torch.cat([network(batch).argmax(1) for batch in y.split(50)]) for arm, y in x.items()}
    metrics["pixel_accuracy"] = {arm: (y == targets).double().mean().item() for arm, y in detected.items()}
    metrics["mean_iou"] = {arm: mean_iou(y, targets, classes) for arm, y in detected.items()}
    weights = str(pretrained.weights_dir() / pretrained.FILES["squeezenet"][0])
    extractor = features.build(weights, None, None, Path(), init_distributed())
    sets = {arm: torch.cat([extractor.network(batch)[0] for batch in y.split(50)]) for arm, y in x.items()}
    real = torch.cat([extractor.network(batch)[0] for batch in train_x[: len(train)].split(50)])
    metrics["kid_to_training"] = {arm: distances.kid(y, real) for arm, y in sets.items()}
    palette = torch.linspace(-1, 1, classes)[targets]
    return metrics, {"sampled": samples, "true": truth, "map": palette[:, None].expand(-1, 3, -1, -1)}


ARMS: dict[str, Callable[[Pipeline, list[dict], ConditionFields], Arm]] = {
    "LowRes": super_resolution, "Masked": inpainting, "Semantic": maps, "Layout": maps,
}  # fmt: skip


@torch.no_grad()
def reconstruct_all(pipeline: Pipeline, x: Tensor) -> Tensor:
    return torch.cat([reconstruct(pipeline.autoencoder, batch) for batch in x.split(40)])


@torch.no_grad()
def batched_mean(metric: Callable[..., Tensor], *inputs: Tensor) -> float:
    return torch.cat([metric(*batch) for batch in zip(*(x.split(40) for x in inputs))]).double().mean().item()


# ---- maps, and a segmentation network


def images_and_maps(items: list[dict], name: str) -> tuple[Tensor, Tensor]:
    """Images [N, 3, H, W] in [-1, 1] and maps int64 [N, H, W]; boxes are rasterised, 0 is background."""
    x = images(items)
    if name == "boxes":
        return x, torch.stack([rasterise(item["boxes"], *x.shape[2:]) for item in items])
    return x, torch.stack(column(items, name)).long()


def rasterise(boxes: np.ndarray, height: int, width: int) -> Tensor:
    """int64 [H, W]: 1 + class in the ellipse in each box (x0, y0, x1, y1 as fractions, class); later ones on top."""
    segmentation = torch.zeros(height, width, dtype=torch.int64)
    y, x = (((torch.arange(n) + 0.5) / n) for n in (height, width))
    for x0, y0, x1, y1, label in boxes.tolist():
        u, v = (x - (x0 + x1) / 2) / (x1 - x0), (y[:, None] - (y0 + y1) / 2) / (y1 - y0)
        segmentation[u**2 + v**2 <= 0.25] = 1 + int(label)
    return segmentation


class SegmentationNet(nn.Module):
    """Pixel classes: [B, 3, H, W] -> logits [B, classes, H, W]; a U-Net of three resolutions."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = ((3, 24), (24, 48), (48, 96), (96 + 48, 48), (48 + 24, 24))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(),
                          nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()) for a, b in widths
        )  # fmt: skip
        self.out = nn.Conv2d(24, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        down1, down2, bottom, up2, up1 = self.layers
        high = down1(x)  # [B, 24, H, W]
        middle = down2(F.avg_pool2d(high, 2))  # [B, 48, H/2, W/2]
        h = F.interpolate(bottom(F.avg_pool2d(middle, 2)), scale_factor=2.0)  # [B, 96, H/2, W/2]
        h = F.interpolate(up2(torch.cat([h, middle], 1)), scale_factor=2.0)  # [B, 48, H, W]
        return self.out(up1(torch.cat([h, high], 1)))  # [B, classes, H, W]


def train_segmentation(x: Tensor, maps: Tensor, classes: int, cfg: TrainConfig = SEGMENTATION) -> SegmentationNet:
    """A segmentation network trained on images [N, 3, H, W] and maps [N, H, W]; deterministic."""
    torch.manual_seed(0)
    network = SegmentationNet(classes)
    optimizer = optim.build_optimizer(network, cfg)
    for step in range(cfg.steps):
        indices = torch.randint(len(x), (cfg.batch_size,))
        F.cross_entropy(network(x[indices]), maps[indices]).backward()
        optimizer_step(optimizer, cfg, step)
    return network.eval().requires_grad_(False)


def mean_iou(detected: Tensor, target: Tensor, classes: int) -> float:
    """The mean over the foreground classes that occur, all images together."""
    sums = [
        (((detected == c) & (target == c)).sum(), ((detected == c) | (target == c)).sum()) for c in range(1, classes)
    ]
    return float(np.mean([intersection / union for intersection, union in sums if union > 0]))


# ---- the table in docs/tasks.md

START, END = "<!-- generated by python -m benchmarks tasks_real --table -->", "<!-- end of real -->"


def write_table(results: Path, page: Path) -> None:
    """Replace the lines between the two marks of the page by a table of the results."""
    arms = ("sampled", "baseline", "upper_bound")
    lines = [
        "| run | stage one, two | held out | metric | sampled | baseline | upper bound |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in sorted(results.glob("tasks-real-*.json")):
        result = json.loads(path.read_text())
        minutes = " + ".join(f"{m:.0f}" for m in result["stage_minutes"])
        head = (result["task"], f"{minutes} min", f"{result['images']} of {result['split']}")
        for i, (name, value) in enumerate((n, v) for n, v in result.items() if isinstance(v, dict)):
            cells = (*(head if not i else ("", "", "")), name.replace("_", " "), *(f"{value[arm]:.3g}" for arm in arms))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(f"| | | | | | {result['baseline']} | {result['upper_bound']} |")
    replace_section(page, START, END, lines)


if __name__ == "__main__":
    main()
