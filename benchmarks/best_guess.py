"""How far a run without conditions is from the best guess of x0, at every level of noise.

python -m benchmarks.best_guess RUN [--scenes 6000] [--count 96] [--output FILE.json]

The best guess is the mean of p(x0 | z). Over scenes drawn like the data's it is their mean, weighed by how well each
explains z; with a finite number of them it is near the best where many explain z (`explain`), and no bound elsewhere.
Errors are mean squares per number of the latent, on scenes that no run has seen. `readable` is the share of them that
are scenes still when they are drawn again from that level of noise: where it falls, training is needed.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.tasks import images, share
from latentdiff import load
from latentdiff.conditioning.cond import Cond
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
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
    data, model = run_dir.read_recipe(folder, DiffusionRecipe).data, load.load_run(folder)
    latents = [
        torch.cat([model.autoencoder.encode(part) for part in pictures.split(200)])
        for pictures in (scenes(data, "train", options.scenes), scenes(data, "test", options.count))
    ]
    rows = [compare(model, *latents, ratio) | {"readable": drawn_again(model, latents[1], ratio)} for ratio in RATIOS]
    print("\n".join(json.dumps(row) for row in rows))
    if options.output:
        checkpoint.write_json(options.output, {"run": folder.name, "scenes": options.scenes, "rows": rows})


def scenes(config: ShapesConfig, split: str, count: int) -> Tensor:
    data = ShapesDataset(config, split)
    return images([data.item(i, 0) for i in range(count)])


def compare(model: LatentDiffusion, known: Tensor, z: Tensor, ratio: float) -> dict:
    """Errors of the network's x0 and of the weighed mean of `known` [N, C, h, w], at sigma / alpha = ratio."""
    grid = torch.linspace(0, model.schedule.T - 1, 20001, dtype=torch.float64)
    t = grid[(model.schedule.sigma(grid) / model.schedule.alpha(grid) - ratio).abs().argmin()].expand(len(z))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    x_t = model.schedule.diffuse(z, noise, t)
    x0, _ = model.denoiser(Cond(), model.sampling)(x_t, t)
    weights, best = weighed(known, x_t / model.schedule.alpha(t[:1]).item(), ratio)
    explain = (1 / weights.square().sum(1)).median().item()
    errors = {name: (guess - z).square().mean().item() for name, guess in (("network", x0), ("mean", best))}
    return {"ratio": ratio, **errors, "explain": explain}


def drawn_again(model: LatentDiffusion, z: Tensor, ratio: float) -> float:
    """The share of z [B, C, h, w] that the reader reads, each drawn over from the next level below sigma / alpha."""
    ts = model.grid(model.sampling)
    left = max(1, int((model.schedule.sigma(ts) / model.schedule.alpha(ts) <= ratio).sum()))
    seeds, shape = list(range(len(z))), tuple(z.shape[1:])
    for x in model.draw({}, seeds, shape, model.sampling, start=z, strength=left / len(ts)):
        pass
    return share(reader.read_scene(picture) is not None for picture in model.autoencoder.decode(x))


def weighed(known: Tensor, x: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """p(known | x) [B, N] for x = x0 + ratio·noise [B, ...], and the mean of known under it [B, ...]."""
    flat = known.flatten(1)
    weights = ((x.flatten(1) @ flat.T - flat.square().sum(1) / 2) / ratio**2).softmax(1)
    return weights, (weights @ flat).reshape(x.shape)


if __name__ == "__main__":
    main()
