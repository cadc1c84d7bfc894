"""Guidance without retraining: how far an unconditional run follows a classifier, and a picture given small.

python -m benchmarks.guidance RUN CLASSIFIER [--count 64] [--output FILE.json] [--pictures FILE.png]

A run with text draws from the empty prompt. The data must be drawn shapes, so that a reader can tell what was drawn.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff import load
from latentdiff.autoencoder import perceptual
from latentdiff.load import load_classifier
from latentdiff.data import loader
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import KINDS
from latentdiff.diffusion.guidance import image_guidance, image_similarity_loss
from latentdiff.evaluation.image_metrics import psnr
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, image_grid, run_dir

SMALL = 8  # side of the small picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("classifier")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output")
    parser.add_argument("--pictures")
    options = parser.parse_args()
    folder, grid = run_dir.find_run(options.run), []
    model = load.load_run(folder)
    data = ShapesDataset(run_dir.read_recipe(folder, DiffusionRecipe).data, "test")
    x = loader.images(next(loader.sequential_batches(data, range(options.count), options.count)))
    figures = {"run": folder.name, "count": options.count, "steps": options.steps}
    figures["classifier"] = by_class(model, load_classifier(options.classifier, model), options, grid)
    figures["picture"] = by_picture(model, x, options, grid)
    print(json.dumps(figures, indent=1))
    if options.output:
        checkpoint.write_json(Path(options.output), figures)
    if options.pictures:
        image_grid.save_grid(torch.cat([row[:8] for row in grid]), Path(options.pictures), columns=8)


def drawn(model: LatentDiffusion, options, around: Callable | None = None) -> Tensor:
    """Pictures [count, 3, H, W], without any condition of the run's own."""
    batch, seeds = model.tokens([""] * options.count), list(range(options.count))
    settings = replace(model.sampling, guidance_scale=1.0, steps=options.steps, sampler="ddpm")
    for z in model.draw(batch, seeds, model.latent_shape(), settings, around=around):
        pass
    return model.autoencoder.decode(z).clamp(-1, 1)


def by_class(model: LatentDiffusion, classifier: torch.nn.Module, options, grid: list[Tensor]) -> list[dict]:
    """For each scale, over classes in turn: the share whose largest object is of the class, by a reader."""
    kinds, found = list(KINDS), []
    label = torch.arange(options.count) % classifier.out.out_features
    for scale in (0.0, 3.0, 10.0, 30.0, -10.0):
        x = drawn(model, options, towards(classifier, label, scale, model))
        grid.append(x)
        scenes = [reader.detect((one.permute(1, 2, 0) / 2 + 0.5).double().numpy()) for one in x]
        largest = [kinds.index(max(s.objects, key=lambda t: t.radius).kind) if s is not None else -1 for s in scenes]
        right = sum(a == b for a, b in zip(largest, label.tolist()))
        found.append({"scale": scale, "right": right / len(x), "interval": reader.wilson(right, len(x)),
                      "readable": sum(s is not None for s in scenes) / len(x)})  # fmt: skip
    return found


def by_picture(model: LatentDiffusion, x: Tensor, options, grid: list[Tensor]) -> list[dict]:
    """For each guider and scale: PSNR of the drawn picture made small, against the small picture, and LPIPS to x."""
    lpips, decode = perceptual.build(perceptual.LPIPSConfig(backbone="squeezenet")), model.autoencoder.decode
    large = lambda a: F.interpolate(a, size=(64, 64), mode="bilinear")  # noqa: E731 - where its features see anything
    near = lambda a, b: lpips(large(a), large(b))  # noqa: E731
    shrunk = lambda a: F.interpolate(a, size=(SMALL, SMALL), mode="bicubic", antialias=True)  # noqa: E731
    target, found = shrunk(x), []
    grid += [x, F.interpolate(target, size=x.shape[2:])]
    guiders = {"l2": image_similarity_loss(target, decode), "lpips": image_similarity_loss(x, decode, near)}
    for name, scale in (("l2", 0), ("l2", 10), ("l2", 100), ("l2", 1000), ("l2", -10), ("lpips", 1000)):
        y = drawn(model, options, lambda d, noise, n=name, s=scale: image_guidance(d, guiders[n], s, model.schedule))
        grid.append(y)
        found.append({"guider": name, "scale": scale, "psnr_small": psnr(shrunk(y), target).mean().item(),
                      "lpips": near(y, x).mean().item()})  # fmt: skip
    return found


if __name__ == "__main__":
    main()
