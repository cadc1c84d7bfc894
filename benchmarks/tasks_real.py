"""How well runs on real pictures do their tasks on held-out ones, beside a plain way of doing the same.

python -m benchmarks.tasks_real RUN [--split test] [--count 200] [--output FILE.json] [--pictures FOLDER]
python -m benchmarks.tasks_real --table       from benchmarks/results/tasks-real-*.json, into docs/tasks.md

Maps and boxes are read back by a small network that learned to see them in the real training pictures.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from benchmarks.tasks import Arm, column, draw, images, words_of
from latentdiff import load, recipe
from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.perceptual import LPIPSConfig, build
from latentdiff.layers import images_to_float
from latentdiff.data.fields import ConditionFields
from latentdiff.evaluation import distances, features
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.evaluation.stage_one import again, lpips_in_hole
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, image_grid, optim, run_dir
from latentdiff.training.distributed import init_distributed
from latentdiff.training.log import read_metrics
from latentdiff.training.settings import TrainConfig

READER = TrainConfig(steps=1000, batch_size=16, lr=2e-3, lr_schedule="cosine", warmup_steps=50)


def main() -> None:
    parser = words_of(__doc__)
    parser.add_argument("--split", default="test", help="which pictures are held out: test or val")
    options = parser.parse_args()
    if options.table:
        table(Path("benchmarks/results"), Path("docs/tasks.md"))
        return
    folder = run_dir.find_run(options.run)
    r, model = run_dir.read_recipe(folder, DiffusionRecipe), load.load_run(folder)
    train, held_out = (recipe.with_fields(r, recipe.open_data(r, split)) for split in ("train", options.split))
    items = [held_out.item(i, 2 * i) for i in range(min(options.count, len(held_out)))]  # an even key does not mirror
    figures, rows = ARMS[type(r.conditions[0]).__name__](model, items, train)
    seconds = [read_metrics(f / "metrics.jsonl")[-1]["seconds"] for f in (run_dir.find_run(r.autoencoder.path), folder)]
    about = {"task": folder.name, "pictures": len(items), "split": options.split, "train_steps": r.train.steps,
             "minutes_of_both_stages": [s / 60 for s in seconds]}  # fmt: skip
    print(json.dumps(about | figures, indent=1))
    if options.output:
        checkpoint.write_json(options.output, about | figures)
    for name, x in rows.items() if options.pictures else ():
        image_grid.save_grid(x[:24], options.pictures / f"{folder.name}-{name}.png", columns=8)


# ---- one arm per task: figure -> what was drawn, the plain way, and the best that can be had


def enlarged(model: LatentDiffusion, items: list[dict], train: ConditionFields) -> Arm:
    """Beside bicubic enlargement, and the autoencoder's copy of the true picture."""
    small, truth = torch.stack(column(items, "low_res")), images(items)
    size = (truth.shape[3], truth.shape[2])
    bicubic = np.stack([np.array(Image.fromarray(s.numpy()).resize(size, Image.BICUBIC)) for s in small])
    shown = {"drawn": draw(model, {"low_res": small}, len(items)), "plain": images_to_float(torch.from_numpy(bicubic)),
             "best": copies(model, truth)}  # fmt: skip
    distance = build(LPIPSConfig(backbone="squeezenet"))
    figures = {"plain": "bicubic enlargement", "best": "the autoencoder's copy of the true picture"}
    for name, measure in {"psnr": psnr, "ssim": ssim, "lpips": lambda x, y: distance(y, x).flatten()}.items():
        figures[name] = {who: in_parts(measure, truth, x) for who, x in shown.items()}
    return figures, {"drawn": shown["drawn"], "true": truth, "plain": shown["plain"]}


def filled(model: LatentDiffusion, items: list[dict], train: ConditionFields) -> Arm:
    """In the hole alone, beside the mean of what is known; the best is the autoencoder's copy of what was there."""
    given = {name: torch.stack(column(items, name)) for name in ("image", "mask")}
    truth, hole = images(items), (given["mask"] > 0).float()[:, None]  # [B, 1, H, W]
    mean = (truth * (1 - hole)).sum((2, 3), keepdim=True) / (1 - hole).sum((2, 3), keepdim=True)
    made = {"drawn": draw(model, given, len(items)), "plain": mean, "best": copies(model, truth)}
    shown = {who: hole * x + (1 - hole) * truth for who, x in made.items()}
    distance = build(LPIPSConfig(backbone="squeezenet"))
    figures = {"plain": "the mean of what is known", "best": "the autoencoder's copy of what was there",
               "hole_share": hole.mean().item()}  # fmt: skip
    for name, measure in {
        "lpips_in_hole": lambda x, y, m: lpips_in_hole(distance, x, y, m),
        "l1_in_hole": lambda x, y, m: ((x - y).abs() * m).sum((1, 2, 3)) / m.sum((1, 2, 3)) / 6,  # of a range of 0..1
    }.items():
        figures[name] = {who: in_parts(measure, truth, x, hole) for who, x in shown.items()}
    return figures, {"drawn": shown["drawn"], "true": truth, "given": truth * (1 - hole)}


def mapped(model: LatentDiffusion, items: list[dict], train: ConditionFields) -> Arm:
    """What a reader finds in the pictures against the map; plain: the training picture with the nearest map."""
    name = train.reads[0]
    classes = train.classes[name] + (name == "boxes")
    known, known_maps = pairs([train.item(i, 2 * i + flip) for flip in (0, 1) for i in range(len(train))], name)
    truth, maps = pairs(items, name)
    reader = learn(known, known_maps, classes)
    nearest = torch.stack([(known_maps == one).float().mean((1, 2)).argmax() for one in maps])
    drawn = draw(model, {name: column(items, name)}, len(items))
    shown = {"drawn": drawn, "plain": known[nearest], "best": truth}
    figures = {"plain": "the training picture whose map is nearest", "best": "the held-out pictures themselves"}
    seen = {who: torch.cat([reader(part).argmax(1) for part in x.split(50)]) for who, x in shown.items()}
    figures["pixels_right"] = {who: (x == maps).double().mean().item() for who, x in seen.items()}
    figures["mean_iou"] = {who: mean_iou(x, maps, classes) for who, x in seen.items()}
    look = features.find(str(pretrained.weights_dir() / pretrained.FILES["squeezenet"][0]), None, None, Path(), init_distributed())
    first = {who: torch.cat([look.network(part)[0] for part in x.split(50)]) for who, x in shown.items()}
    real = torch.cat([look.network(part)[0] for part in known[: len(train)].split(50)])
    figures["kid_to_training"] = {who: distances.kid(x, real) for who, x in first.items()}
    palette = torch.linspace(-1, 1, classes)[maps]
    return figures, {"drawn": drawn, "true": truth, "map": palette[:, None].expand(-1, 3, -1, -1)}


ARMS: dict[str, Callable[[LatentDiffusion, list[dict], ConditionFields], Arm]] = {
    "LowRes": enlarged, "Masked": filled, "Semantic": mapped, "Layout": mapped,
}  # fmt: skip


@torch.no_grad()
def copies(model: LatentDiffusion, x: Tensor) -> Tensor:
    return torch.cat([again(model.autoencoder, part) for part in x.split(40)])


@torch.no_grad()
def in_parts(measure: Callable[..., Tensor], *given: Tensor) -> float:
    return torch.cat([measure(*part) for part in zip(*(x.split(40) for x in given))]).double().mean().item()


# ---- maps, and a reader of them


def pairs(items: list[dict], name: str) -> tuple[Tensor, Tensor]:
    """Pictures [N, 3, H, W] in [-1, 1] and maps int64 [N, H, W]; boxes are painted, 0 being none."""
    x = images(items)
    if name == "boxes":
        return x, torch.stack([painted(item["boxes"], *x.shape[2:]) for item in items])
    return x, torch.stack(column(items, name)).long()


def painted(boxes: np.ndarray, height: int, width: int) -> Tensor:
    """int64 [H, W]: 1 + class in the ellipse in each box (x0, y0, x1, y1 in shares, class), the first lowest."""
    paper = torch.zeros(height, width, dtype=torch.int64)
    y, x = (((torch.arange(n) + 0.5) / n) for n in (height, width))
    for x0, y0, x1, y1, kind in boxes.tolist():
        across, down = (x - (x0 + x1) / 2) / (x1 - x0), (y[:, None] - (y0 + y1) / 2) / (y1 - y0)
        paper[across**2 + down**2 <= 0.25] = 1 + int(kind)
    return paper


class Reader(nn.Module):
    """The class of every pixel: [B, 3, H, W] -> logits [B, classes, H, W], over three sizes and back."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = ((3, 24), (24, 48), (48, 96), (96 + 48, 48), (48 + 24, 24))
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(),
                          nn.Conv2d(b, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()) for a, b in widths
        )  # fmt: skip
        self.out = nn.Conv2d(24, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine, middle, coarse, up, top = self.layers
        fine = fine(x)  # [B, 24, H, W]
        middle = middle(F.avg_pool2d(fine, 2))  # [B, 48, H/2, W/2]
        h = F.interpolate(coarse(F.avg_pool2d(middle, 2)), scale_factor=2.0)
        h = F.interpolate(up(torch.cat([h, middle], 1)), scale_factor=2.0)
        return self.out(top(torch.cat([h, fine], 1)))


def learn(x: Tensor, maps: Tensor, classes: int, train: TrainConfig = READER) -> Reader:
    """A reader that has seen pictures [N, 3, H, W] and their maps [N, H, W]; deterministic."""
    torch.manual_seed(0)
    reader = Reader(classes)
    optimizer = optim.build(reader, train)
    for step in range(train.steps):
        some = torch.randint(len(x), (train.batch_size,))
        F.cross_entropy(reader(x[some]), maps[some]).backward()
        optim.step(optimizer, train, optim.rate(train, step))
    return reader.eval().requires_grad_(False)


def mean_iou(seen: Tensor, wanted: Tensor, classes: int) -> float:
    """Over the classes above 0 that occur, all pictures together."""
    both = [(((seen == c) & (wanted == c)).sum(), ((seen == c) | (wanted == c)).sum()) for c in range(1, classes)]
    return float(np.mean([inner / outer for inner, outer in both if outer > 0]))


# ---- the table in the docs

START, END = "<!-- made by python -m benchmarks.tasks_real --table -->", "<!-- end of real -->"


def table(results: Path, page: Path) -> None:
    """The lines between the marks of the page, anew from the results."""
    lines = ["| run | stage one, two | held out | figure | drawn | plain | best |", "|---|---|---|---|---|---|---|"]
    for path in sorted(results.glob("tasks-real-*.json")):
        found = json.loads(path.read_text())
        minutes = " + ".join(f"{m:.0f}" for m in found["minutes_of_both_stages"])
        about = (found["task"], f"{minutes} min", f"{found['pictures']} of {found['split']}")
        for i, (name, value) in enumerate((n, v) for n, v in found.items() if isinstance(v, dict)):
            cells = (*(about if not i else ("", "", "")), name.replace("_", " "))
            cells += tuple(f"{value[who]:.3g}" for who in ("drawn", "plain", "best"))
            lines.append(f"| {' | '.join(cells)} |")
        lines.append(f"| | | | | | {found['plain']} | {found['best']} |")
    before, _, rest = page.read_text().partition(START)
    page.write_text(before + "\n".join([START, "", *lines, "", END]) + rest.partition(END)[2])
    print("\n".join(lines))


if __name__ == "__main__":
    main()
