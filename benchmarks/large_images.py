"""Images larger than in training: tiled decoding, tiled sampling and shifted timesteps of a semantic run.

python -m benchmarks large_images RUN [--side 1024] [--output FILE.json] [--images FOLDER]

Memory is the peak resident set size above that before the call, each call in a new process.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Tiling, untiled
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import draw as draw_scene
from latentdiff.diffusion.tiling import tile_offset
from latentdiff.layers import windows
from latentdiff.recipe import DiffusionRecipe
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import checkpoint, image_grid, run_dir

TILE, OVERLAP = 32, 0.25  # of tiled sampling: latent positions, fraction of a tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--measure", help="measure one call in this process (used by the benchmark itself)")
    parser.add_argument("--io", help="the folder of inputs and result of that call")
    options = parser.parse_args()
    folder = run_dir.find_run(options.run)
    if options.measure:
        print(json.dumps(measure_call(folder, options)))
        return
    metrics = {"run": folder.name, "side": options.side, "steps": options.steps, "torch": torch.__version__}
    metrics |= compare(folder, options)
    metrics["sizes"] = sizes(folder, options)
    print(json.dumps(metrics, indent=1))
    if options.output:
        checkpoint.write_json(Path(options.output), metrics)


# ---- segmentation maps, and how well an image follows its map


def mosaic(folder: Path, side: int) -> Tensor:
    """A map int [side, side] of held-out scenes side by side, each of the training size."""
    data = ShapesDataset(run_dir.read_recipe(folder, DiffusionRecipe).data, "test")
    cell, count = data.config.height, side // data.config.height
    assert side % cell == 0, f"--side is {side}; it must be a multiple of {cell}"
    maps = [[data.item(count * i + j, 0)["segmentation"] for j in range(count)] for i in range(count)]
    return torch.from_numpy(np.block(maps))


def agreement(x: Tensor, segmentation: Tensor, cell: int) -> dict[str, float]:
    """How well an image [3, H, W] follows its map [H, W], read cell by cell by the scene reader.

    Returns: iou, the mean over the foreground classes; pixel_accuracy; background, the fraction of cells with the most
    frequent background, which is not in the map: distant tiles agree on it only if information reaches them.
    """
    detected, backgrounds = torch.zeros_like(segmentation), Counter()
    image = (x.permute(1, 2, 0) / 2 + 0.5).double().numpy()
    for top in range(0, len(image), cell):
        for left in range(0, image.shape[1], cell):
            window = np.s_[top : top + cell, left : left + cell]
            scene = reader.detect(image[window])
            if scene is not None:
                detected[window] = torch.from_numpy(draw_scene(scene, cell, cell)[1])
                backgrounds[scene.background] += 1
    ious = [((detected == c) & (segmentation == c)).sum() / ((detected == c) | (segmentation == c)).sum()
            for c in segmentation.unique() if c > 0]  # fmt: skip
    return {"iou": torch.stack(ious).mean().item(), "pixel_accuracy": (detected == segmentation).double().mean().item(),
            "background": max(backgrounds.values(), default=0) / max(1, backgrounds.total())}  # fmt: skip


def border_ratios(x: Tensor, segmentation: Tensor, borders: list[int], period: int) -> dict[str, float]:
    """Mean difference between neighbouring pixels of x [3, H, W] across tile borders, over that across other lines.

    "border": everywhere; "border_flat": only where the map is background all around, so that only a tile border can
    cause a difference. The map repeats with `period`, so only lines of the same phase are compared.
    """
    near = {line + d for line in borders for d in range(-4, 5)}
    flat = F.max_pool2d(segmentation[None].float(), 9, 1, 4)[0] == 0
    sums = {"border": torch.zeros(2), "border_flat": torch.zeros(2)}  # across borders, across other lines
    for differences, background in ((x.diff(dim=1), flat[1:]), (x.diff(dim=2).mT, flat.T[1:])):
        differences = differences.abs().mean(0)  # [lines - 1, pixels]
        for name, weight in (("border", torch.ones_like(differences)), ("border_flat", background.float())):
            mean = (differences * weight).sum(1) / weight.sum(1).clamp(min=1)
            for line in borders:
                others = [i for i in range((line - 1) % period, len(mean), period) if i + 1 not in near]
                sums[name] += torch.stack([mean[line - 1], mean[others].mean()])
    return {name: (at_borders / others).item() for name, (at_borders, others) in sums.items()}


# ---- memory and time, in a new process


def sample_latents(pipeline: Pipeline, maps: Tensor, steps: int, **settings: float) -> Tensor:
    """Latents [B, C, h, w] for maps [B, H, W]."""
    batch = pipeline.prepare({"segmentation": maps})
    settings = replace(pipeline.model.sampling, steps=steps, guidance_scale=1.0, **settings)
    for z in pipeline.latents(batch, list(range(len(maps))), settings, maps.shape[1:]):
        pass
    return z


def decode(pipeline: Pipeline, z: Tensor, mode: Tiling) -> Tensor:
    pipeline.autoencoder.tiling = mode
    return pipeline.autoencoder.decode(z)


CALLS = {
    "decode untiled": lambda pipeline, inputs, steps: decode(pipeline, inputs["z"], untiled),
    "decode exact": lambda pipeline, inputs, steps: decode(pipeline, inputs["z"], tiling.exact),
    "decode offloaded": lambda pipeline, inputs, steps: decode(pipeline, inputs["z"], tiling.offloaded),
    "decode blended": lambda pipeline, inputs, steps: decode(pipeline, inputs["z"], tiling.blended),
    "sample untiled": lambda pipeline, inputs, steps: sample_latents(pipeline, inputs["map"], steps),
    "sample tiled": lambda pipeline, inputs, steps: sample_latents(
        pipeline, inputs["map"], steps, tile_size=TILE, tile_overlap=OVERLAP
    ),
}


@torch.no_grad()
def measure_call(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """Time and peak memory (MiB) of one call; its result is written to the folder --io."""
    io, pipeline = Path(options.io), load_pipeline(folder)
    inputs = load_file(io / "inputs.safetensors")
    warm_up = {"z": inputs["z"][:, :, :8, :8], "map": inputs["map"][:, :64, :64]}
    CALLS[options.measure](pipeline, warm_up, 1)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, start = memory("VmRSS"), time.perf_counter()
    result = CALLS[options.measure](pipeline, inputs, options.steps)
    seconds, peak = time.perf_counter() - start, memory("VmHWM") - before
    save_file({"x": result.contiguous()}, io / f"{options.measure}.safetensors")
    return {"seconds": round(seconds, 2), "peak_mib": round(peak, 1)}


def memory(name: str) -> float:
    """VmRSS (now) or VmHWM (peak) of this process, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def compare(folder: Path, options: argparse.Namespace) -> dict:
    """Metrics of all calls, each in a new process."""
    metrics, results, segmentation = {}, {}, mosaic(folder, options.side)
    pipeline = load_pipeline(folder)
    cell, factor = pipeline.image_size[0], pipeline.autoencoder.factor
    with tempfile.TemporaryDirectory() as io:
        shape = pipeline.latent_shape(options.side, options.side)
        inputs = {"map": segmentation[None], "z": torch.zeros(1, *shape)}
        for name in sorted(CALLS, reverse=True):  # sampling first: its latents are decoded
            save_file(inputs, Path(io) / "inputs.safetensors")
            command = [sys.executable, "-m", "benchmarks.large_images", str(folder), "--measure", name, "--io", io]
            command += ["--steps", str(options.steps)]
            metrics[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            results[name] = load_file(Path(io) / f"{name}.safetensors")["x"]
            if name == "sample untiled":
                inputs["z"] = results[name]
    reference = results["decode untiled"]
    for name in ("exact", "offloaded", "blended"):
        metrics[f"decode {name}"] |= {
            "memory_fraction": metrics[f"decode {name}"]["peak_mib"] / metrics["decode untiled"]["peak_mib"],
            "max_difference_255": (results[f"decode {name}"] - reference).abs().max().item() * 127.5,
        }
    ts = pipeline.model.timesteps(replace(pipeline.model.sampling, steps=options.steps))
    tiles = windows(options.side // factor, TILE, round(TILE * OVERLAP), offset=tile_offset(ts[-1].item()))
    borders = sorted({factor * end for tile, _ in tiles for end in (tile.start, tile.stop)} - {0, options.side})
    for name in ("untiled", "tiled"):
        x = decode(pipeline, results[f"sample {name}"], tiling.exact)[0].clamp(-1, 1)
        metrics[f"sample {name}"] |= agreement(x, segmentation, cell) | border_ratios(x, segmentation, borders, cell)
        if options.images:
            image_grid.save_grid(x[None], options.images / f"{name}.png", columns=1)
    return metrics


def sizes(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Agreement at increasing sizes and timestep shifts."""
    pipeline, results = load_pipeline(folder), []
    for side, count in ((32, 64), (64, 16), (128, 8), (256, 4)):
        area = mosaic(folder, 256 if side < 256 else 512)
        maps = area.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)[:count]
        for shift in (0.5, 1.0, 2.0, 4.0):
            z = sample_latents(pipeline, maps, options.steps, timestep_shift=shift)
            x = pipeline.autoencoder.decode(z).clamp(-1, 1)
            metrics = [agreement(image, segmentation, pipeline.image_size[0]) for image, segmentation in zip(x, maps)]
            means = {name: float(np.mean([m[name] for m in metrics])) for name in metrics[0]}
            results.append({"side": side, "timestep_shift": shift} | means)
    return results


if __name__ == "__main__":
    main()
