"""How close an unconditional run is to the optimal denoiser, at every noise level.

python -m benchmarks optimal_denoiser RUN [--scenes 6000] [--count 96] [--output FILE.json]

The optimal prediction of x0 is the mean of p(x0 | z_t). It is estimated by the mean over scenes of the data, weighted
by their likelihood of z_t. With a finite number of scenes the estimate is close where many of them have weight
(`effective_scenes`), and not a bound elsewhere. Errors are mean squared errors of the latent on unseen scenes.
`readable` is the fraction of these that are valid scenes after image-to-image sampling from that noise level: where it
drops, the model needs more training.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tasks import fraction, images
from latentdiff.conditioning.cond import Cond
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import checkpoint, run_dir

RATIOS = (40, 20, 12, 8, 5, 3, 2, 1, 0.5, 0.2)  # sigma / alpha


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--scenes", type=int, default=6000)
    parser.add_argument("--count", type=int, default=96)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    folder = run_dir.find_run(options.run)
    data, pipeline = run_dir.read_recipe(folder, DiffusionRecipe).data, load_pipeline(folder)
    train, test = (
        torch.cat([pipeline.autoencoder.encode(batch) for batch in x.split(200)])
        for x in (scenes(data, "train", options.scenes), scenes(data, "test", options.count))
    )
    results = [compare(pipeline.model, train, test, ratio) | {"readable": readable_fraction(pipeline, test, ratio)}
               for ratio in RATIOS]  # fmt: skip
    print("\n".join(json.dumps(result) for result in results))
    if options.output:
        checkpoint.write_json(options.output, {"run": folder.name, "scenes": options.scenes, "results": results})


def scenes(config: ShapesConfig, split: str, count: int) -> Tensor:
    data = ShapesDataset(config, split)
    return images([data.item(i, 0) for i in range(count)])


def compare(model: LatentDiffusion, train: Tensor, z: Tensor, ratio: float) -> dict:
    """Errors of the network's x0 and of the weighted mean of `train` [N, C, h, w], at sigma / alpha = ratio."""
    grid = torch.linspace(0, model.schedule.T - 1, 20001, dtype=torch.float64)
    t = grid[(model.schedule.sigma(grid) / model.schedule.alpha(grid) - ratio).abs().argmin()].expand(len(z))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    z_t = model.schedule.diffuse(z, noise, t)
    x0, _ = model.denoiser(Cond(), model.sampling)(z_t, t)
    weights, mean = posterior_mean(train, z_t / model.schedule.alpha(t[:1]).item(), ratio)
    effective = (1 / weights.square().sum(1)).median().item()
    errors = {name: (x - z).square().mean().item() for name, x in (("network", x0), ("weighted_mean", mean))}
    return {"ratio": ratio, **errors, "effective_scenes": effective}


def readable_fraction(pipeline: Pipeline, z: Tensor, ratio: float) -> float:
    """The fraction of z [B, C, h, w] that are valid scenes after sampling from the timestep below sigma / alpha."""
    model = pipeline.model
    ts = model.timesteps(model.sampling)
    remaining = max(1, int((model.schedule.sigma(ts) / model.schedule.alpha(ts) <= ratio).sum()))
    x = pipeline.generate({}, list(range(len(z))), init=z, strength=remaining / len(ts))
    return fraction(reader.read_scene(image) is not None for image in x)


def posterior_mean(train: Tensor, x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """p(train | x) [B, N] for x = x0 + ratio·noise [B, ...], and the mean of train under it [B, ...]."""
    flat = train.flatten(1)
    weights = ((x.flatten(1) @ flat.T - flat.square().sum(1) / 2) / ratio**2).softmax(1)
    return weights, (weights @ flat).reshape(x.shape)


if __name__ == "__main__":
    main()
