"""How well a text-to-emoji run follows style and main colour, judged by a small classifier trained on the real ones.

python -m benchmarks.emoji RUN [--data data/emoji] [--output FILE.json]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff import load
from latentdiff.data import loader
from latentdiff.data.folder import FolderDataset
from latentdiff.data.shapes.reader import wilson
from latentdiff.evaluation import sample_images
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, image_grid, optim, run_dir
from latentdiff.training.settings import TrainConfig


class FeatureNet(nn.Module):
    """Style and main colour of a picture: [B, 3, 64, 64] -> logits [B, styles], [B, colours]."""

    def __init__(self, styles: int, colours: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        self.body = nn.Sequential(*(layer for a, b in zip(widths, widths[1:]) for layer in (
            nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(), nn.AvgPool2d(2))))  # fmt: skip
        self.style, self.colour = nn.Linear(128, styles), nn.Linear(128, colours)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).mean((2, 3))
        return self.style(h), self.colour(h)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--output")
    parser.add_argument("--steps", type=int, default=1500, help="of the judge's training")
    options = parser.parse_args()
    folder = run_dir.find_run(options.run)
    data = replace(run_dir.read_recipe(folder, DiffusionRecipe).data, path=options.data)  # captions as it learned them
    splits = {split: FolderDataset(data, split) for split in ("train", "val", "test")}
    colours = sorted({colour for row in splits["train"].listing.rows.values() for colour in row["colors"][:1]})
    judge = train_judge(splits["train"], colours, options.steps)
    model = load.load_run(folder)
    figures = {"run": folder.name, "judge_steps": options.steps}
    for split in ("val", "test"):
        records = [splits[split].record(i, 0) for i in range(len(splits[split]))]
        wanted = labels(records, colours)
        real = torch.cat([loader.images(b) for b in loader.sequential_batches(splits[split], range(len(records)), 64)])
        drawn = draw(model, [record["caption"] for record in records])
        for kind, x in (("real", real), ("drawn", drawn)):
            for name, logits, truth in zip(("style", "colour"), verdicts(judge, x), wanted):
                right = int((logits.argmax(1) == truth).sum())
                figures[f"{split}_{kind}_{name}"] = right / len(truth)
                figures[f"{split}_{kind}_{name}_interval"] = wilson(right, len(truth))
        shown = drawn[:: max(1, len(drawn) // 64)][:64]
        image_grid.save_grid(shown, folder / "samples" / f"emoji_{split}.png", columns=8)
    print(json.dumps(figures, indent=1))
    checkpoint.write_json(Path(options.output or folder / "emoji.json"), figures)


def train_judge(data: FolderDataset, colours: list[str], steps: int) -> FeatureNet:
    """A judge trained on the real pictures, deterministic."""
    torch.manual_seed(0)
    train = TrainConfig(steps=steps, batch_size=64, lr=2e-3, lr_schedule="cosine", warmup_steps=50)
    judge = FeatureNet(5, len(colours))
    optimizer = optim.build(judge, train)
    stream = loader.batches(data, 0, 64, [range(64)], 0, steps)
    for step, batch in enumerate(stream):
        records = [{"style_id": s, "colors": c} for s, c in zip(batch["style_id"].tolist(), batch["colors"])]
        styles, mains = labels(records, colours)
        style, colour = judge(loader.images(batch))
        (F.cross_entropy(style, styles) + F.cross_entropy(colour, mains)).backward()
        optim.step(optimizer, train, optim.rate(train, step))
    return judge.eval()


def labels(records: list[dict], colours: list[str]) -> tuple[Tensor, Tensor]:
    """style_id and the index of the main colour, the first that the caption names: int64 [B] each."""
    mains = [colours.index(record["colors"][0]) for record in records]
    return torch.tensor([record["style_id"] for record in records]), torch.tensor(mains)


@torch.no_grad()
def verdicts(judge: FeatureNet, x: Tensor) -> tuple[Tensor, Tensor]:
    parts = [judge(piece) for piece in x.split(128)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def draw(model, captions: list[str]) -> Tensor:
    """Pictures [N, 3, 64, 64], as evaluate.py draws them: picture i with seed i."""
    parts = [range(i, min(i + 48, len(captions))) for i in range(0, len(captions), 48)]
    given = (sample_images.fields(model, ("caption",), {"caption": captions[p.start : p.stop]}) for p in parts)
    return torch.cat([sample_images.draw(model, g, list(p), model.sampling) for g, p in zip(given, parts)])


if __name__ == "__main__":
    main()
