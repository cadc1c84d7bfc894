"""Guidance without retraining: how well an unconditional run follows a classifier, and a low-resolution image.

python -m benchmarks guidance RUN CLASSIFIER [--count 64] [--output FILE.json] [--images FILE.png]

A run with text is sampled with the empty prompt. The data must be drawn shapes, which the scene reader can read.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder import perceptual
from latentdiff.data import loader
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import KINDS
from latentdiff.diffusion.guidance import classifier_guidance, image_guidance, image_similarity_loss
from latentdiff.evaluation.image_metrics import psnr
from latentdiff.load import load_classifier
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling.pipeline import Pipeline, Wrap, load_pipeline
from latentdiff.training import checkpoint, image_grid, run_dir

LOW_RES = 8  # side of the low-resolution image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("classifier")
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--output")
    parser.add_argument("--images")
    options = parser.parse_args()
    folder, grid = run_dir.find_run(options.run), []
    pipeline = load_pipeline(folder)
    data = ShapesDataset(run_dir.read_recipe(folder, DiffusionRecipe).data, "test")
    x = loader.images(next(loader.sequential_batches(data, range(options.count), options.count)))
    classifier = load_classifier(options.classifier, pipeline.model, pipeline.autoencoder)
    metrics = {"run": folder.name, "count": options.count, "steps": options.steps}
    metrics["classifier"] = guide_by_classifier(pipeline, classifier, options, grid)
    metrics["image"] = guide_by_image(pipeline, x, options, grid)
    print(json.dumps(metrics, indent=1))
    if options.output:
        checkpoint.write_json(Path(options.output), metrics)
    if options.images:
        image_grid.save_grid(torch.cat([images[:8] for images in grid]), Path(options.images), columns=8)


def sample(pipeline: Pipeline, options: argparse.Namespace, wrap: Wrap | None = None) -> Tensor:
    """Images [count, 3, H, W], without a condition of the run."""
    batch = pipeline.prepare({"caption": [""] * options.count})
    settings = replace(pipeline.model.sampling, guidance_scale=1.0, steps=options.steps, sampler="ddpm")
    return pipeline.generate(batch, list(range(options.count)), settings, wrap=wrap)


def guide_by_classifier(
    pipeline: Pipeline, classifier: nn.Module, options: argparse.Namespace, grid: list[Tensor]
) -> list[dict]:  # fmt: skip
    """Per scale, over all classes: the fraction of images whose largest object is of the class, by the scene reader."""
    kinds, metrics = list(KINDS), []
    label = torch.arange(options.count) % classifier.out.out_features

    def log_p(x: Tensor, t: Tensor) -> Tensor:
        return classifier.log_p(x, t, label)

    for scale in (0.0, 3.0, 10.0, 30.0, -10.0):
        x = sample(pipeline, options, lambda d, noise, s=scale: classifier_guidance(d, log_p, s, pipeline.schedule))
        grid.append(x)
        scenes = [reader.detect((image.permute(1, 2, 0) / 2 + 0.5).double().numpy()) for image in x]
        largest = [kinds.index(max(s.objects, key=lambda t: t.radius).kind) if s is not None else -1 for s in scenes]
        correct = sum(a == b for a, b in zip(largest, label.tolist()))
        metrics.append({"scale": scale, "accuracy": correct / len(x), "interval": reader.wilson(correct, len(x)),
                        "readable": sum(s is not None for s in scenes) / len(x)})  # fmt: skip
    return metrics


def guide_by_image(pipeline: Pipeline, x: Tensor, options: argparse.Namespace, grid: list[Tensor]) -> list[dict]:
    """Per similarity and scale: PSNR of the downsampled sample to the low-resolution image, and LPIPS to x."""
    lpips, decode = perceptual.build(perceptual.LPIPSConfig(backbone="squeezenet")), pipeline.autoencoder.decode

    def upsampled_lpips(a: Tensor, b: Tensor) -> Tensor:  # LPIPS needs more than 32 pixels
        return lpips(*(F.interpolate(image, size=(64, 64), mode="bilinear") for image in (a, b)))

    def downsample(a: Tensor) -> Tensor:
        return F.interpolate(a, size=(LOW_RES, LOW_RES), mode="bicubic", antialias=True)

    target, metrics = downsample(x), []
    grid += [x, F.interpolate(target, size=x.shape[2:])]
    losses = {"l2": image_similarity_loss(target, decode), "lpips": image_similarity_loss(x, decode, upsampled_lpips)}
    for name, scale in (("l2", 0), ("l2", 10), ("l2", 100), ("l2", 1000), ("l2", -10), ("lpips", 1000)):
        y = sample(
            pipeline, options, lambda d, noise, n=name, s=scale: image_guidance(d, losses[n], s, pipeline.schedule)
        )
        grid.append(y)
        metrics.append({"similarity": name, "scale": scale, "psnr_low_res": psnr(downsample(y), target).mean().item(),
                        "lpips": upsampled_lpips(y, x).mean().item()})  # fmt: skip
    return metrics


if __name__ == "__main__":
    main()
