"""How well a text-to-emoji run follows style and main colour, by a small classifier trained on real emoji.

python -m benchmarks emoji RUN [--data data/emoji] [--output FILE.json]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common.classifier_training import optimizer_step
from latentdiff.data import loader
from latentdiff.data.folder import FolderDataset
from latentdiff.data.shapes.reader import wilson
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import checkpoint, image_grid, optim, run_dir
from latentdiff.training.precision import autocast, precision
from latentdiff.training.settings import TrainConfig

BATCH_SIZE = 48  # of sampling


class Classifier(nn.Module):
    """Style and main colour of an image: [B, 3, 64, 64] -> logits [B, styles], [B, colours]."""

    def __init__(self, styles: int, colours: int) -> None:
        super().__init__()
        widths = (3, 32, 64, 128, 128)
        self.body = nn.Sequential(*(layer for a, b in zip(widths, widths[1:]) for layer in (
            nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(), nn.AvgPool2d(2))))  # fmt: skip
        self.style, self.colour = nn.Linear(128, styles), nn.Linear(128, colours)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x).mean((2, 3))  # [B, 128]
        return self.style(h), self.colour(h)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--data", default="data/emoji")
    parser.add_argument("--output")
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the classifier")
    options = parser.parse_args()
    folder = run_dir.find_run(options.run)
    data = replace(run_dir.read_recipe(folder, DiffusionRecipe).data, path=options.data)  # with the run's captions
    splits = {split: FolderDataset(data, split) for split in ("train", "val", "test")}
    colours = main_colours(splits["train"])
    classifier = train_classifier(splits["train"], colours, options.steps)
    pipeline = load_pipeline(folder)
    metrics = {"run": folder.name, "classifier_steps": options.steps}
    for split in ("val", "test"):
        records = [splits[split].record(i, 0) for i in range(len(splits[split]))]
        targets = labels(records, colours)
        real = torch.cat([loader.images(b) for b in loader.sequential_batches(splits[split], range(len(records)), 64)])
        samples = sample(pipeline, [record["caption"] for record in records])
        for kind, x in (("real", real), ("sampled", samples)):
            for name, logits, target in zip(("style", "colour"), predict(classifier, x), targets):
                correct = int((logits.argmax(1) == target).sum())
                metrics[f"{split}_{kind}_{name}"] = correct / len(target)
                metrics[f"{split}_{kind}_{name}_interval"] = wilson(correct, len(target))
        shown = samples[:: max(1, len(samples) // 64)][:64]
        image_grid.save_grid(shown, folder / "samples" / f"emoji_{split}.png", columns=8)
    print(json.dumps(metrics, indent=1))
    checkpoint.write_json(Path(options.output or folder / "emoji.json"), metrics)


def main_colours(data: FolderDataset) -> list[str]:
    """The first colour that each caption of the data names, sorted."""
    return sorted({colour for columns in data.listing.columns_of.values() for colour in columns["colors"][:1]})


def train_classifier(data: FolderDataset, colours: list[str], steps: int) -> Classifier:
    """A classifier trained on the real images; deterministic."""
    torch.manual_seed(0)
    cfg = TrainConfig(steps=steps, batch_size=64, lr=2e-3, lr_schedule="cosine", warmup_steps=50)
    classifier = Classifier(5, len(colours))
    optimizer = optim.build_optimizer(classifier, cfg)
    for step, batch in enumerate(loader.batches(data, 0, 64, [range(64)], 0, steps)):
        records = [{"style_id": s, "colors": c} for s, c in zip(batch["style_id"].tolist(), batch["colors"])]
        style_targets, colour_targets = labels(records, colours)
        style, colour = classifier(loader.images(batch))
        (F.cross_entropy(style, style_targets) + F.cross_entropy(colour, colour_targets)).backward()
        optimizer_step(optimizer, cfg, step)
    return classifier.eval()


def labels(records: list[dict], colours: list[str]) -> tuple[Tensor, Tensor]:
    """style_id and the index of the main colour, the first in the caption: int64 [B] each."""
    colour_ids = [colours.index(record["colors"][0]) for record in records]
    return torch.tensor([record["style_id"] for record in records]), torch.tensor(colour_ids)


@torch.no_grad()
def predict(classifier: Classifier, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = [classifier(batch) for batch in x.split(128)]
    return torch.cat([style for style, _ in logits]), torch.cat([colour for _, colour in logits])


def sample(pipeline: Pipeline, captions: list[str]) -> Tensor:
    """Images [N, 3, 64, 64], sampled as by evaluate.py: image i with seed i."""
    batches = [range(i, min(i + BATCH_SIZE, len(captions))) for i in range(0, len(captions), BATCH_SIZE)]
    x = []
    with autocast(pipeline.device, precision("auto", pipeline.device)):
        for batch in batches:
            fields = {"caption": captions[batch.start : batch.stop]}
            fields = pipeline.conditioner.prepare(fields, pipeline.device)
            x.append(pipeline.generate(fields, list(batch)))
    return torch.cat(x)


if __name__ == "__main__":
    main()
