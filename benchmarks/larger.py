"""Pictures larger than in training: tiled decoding, patch-wise sampling and shifted timesteps of a semantic run.

python -m benchmarks.larger RUN [--side 1024] [--output FILE.json] [--pictures FOLDER]

Each memory figure is the peak resident set above what was resident before the call, in a process of its own.
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

from latentdiff import load
from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Tiling, untiled
from latentdiff.data.shapes import reader
from latentdiff.data.shapes.dataset import ShapesDataset
from latentdiff.data.shapes.scene import draw as draw_scene
from latentdiff.diffusion.tiling import tile_offset
from latentdiff.layers import windows
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, image_grid, run_dir

TILE, OVERLAP = 32, 0.25  # of patch-wise sampling, in places of the latent, and as a share of it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--output")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--measure", help="one call in this process (used by the script itself)")
    parser.add_argument("--given", help="what the call reads, and where its result goes")
    options = parser.parse_args()
    folder = run_dir.find_run(options.run)
    if options.measure:
        print(json.dumps(measured(folder, options)))
        return
    figures = {"run": folder.name, "side": options.side, "steps": options.steps, "torch": torch.__version__}
    figures |= compare(folder, options)
    figures["sizes"] = sizes(folder, options)
    print(json.dumps(figures, indent=1))
    if options.output:
        checkpoint.write_json(Path(options.output), figures)


# ---- maps, and what a picture shows of them


def mosaic(folder: Path, side: int) -> Tensor:
    """A map int [side, side] of held-out scenes side by side, each of the training size: the scale stays."""
    data = ShapesDataset(run_dir.read_recipe(folder, DiffusionRecipe).data, "test")
    cell, count = data.config.height, side // data.config.height
    rows = [
        np.concatenate([data.item(count * i + j, 0)["segmentation"] for j in range(count)], 1) for i in range(count)
    ]
    assert side % cell == 0, f"--side is {side}; it must be a multiple of {cell}"
    return torch.from_numpy(np.concatenate(rows))


def agreement(x: Tensor, wanted: Tensor, cell: int) -> dict[str, float]:
    """How a picture [3, H, W] follows its map [H, W]: a reader looks at every cell and draws what it saw as a map.

    iou: mean over the foreground classes; right: share of pixels of the right class; ground: share of cells with the
    background that most have, which no map says, so that far places agree only if they hear of each other.
    """
    seen, grounds, image = torch.zeros_like(wanted), Counter(), (x.permute(1, 2, 0) / 2 + 0.5).double().numpy()
    for top in range(0, len(image), cell):
        for left in range(0, image.shape[1], cell):
            place = np.s_[top : top + cell, left : left + cell]
            scene = reader.detect(image[place])
            if scene is not None:
                seen[place] = torch.from_numpy(draw_scene(scene, cell, cell)[1])
                grounds[scene.background] += 1
    ious = [((seen == c) & (wanted == c)).sum() / ((seen == c) | (wanted == c)).sum() for c in wanted.unique() if c > 0]
    return {"iou": torch.stack(ious).mean().item(), "right": (seen == wanted).double().mean().item(),
            "ground": max(grounds.values(), default=0) / max(1, grounds.total())}  # fmt: skip


def border_ratios(x: Tensor, wanted: Tensor, lines: list[int], period: int) -> dict[str, float]:
    """Mean step of x [3, H, W] across the rows and columns `lines`, over that across others: everywhere, and where
    the map is background all around, so that nothing but a border of tiles makes a step.

    What the map has at a line repeats with `period`, so only lines of the same phase are compared.
    """
    near = {line + d for line in lines for d in range(-4, 5)}
    flat = F.max_pool2d(wanted[None].float(), 9, 1, 4)[0] == 0
    sums = {"border": torch.zeros(2), "border_flat": torch.zeros(2)}  # across the lines, across others
    for steps, ground in ((x.diff(dim=1), flat[1:]), (x.diff(dim=2).mT, flat.T[1:])):
        steps = steps.abs().mean(0)  # [lines - 1, places]
        for name, weight in (("border", torch.ones_like(steps)), ("border_flat", ground.float())):
            mean = (steps * weight).sum(1) / weight.sum(1).clamp(min=1)
            for line in lines:
                others = [i for i in range((line - 1) % period, len(mean), period) if i + 1 not in near]
                sums[name] += torch.stack([mean[line - 1], mean[others].mean()])
    return {name: (at / others).item() for name, (at, others) in sums.items()}


# ---- memory and time, in a process of its own


def draw(model: LatentDiffusion, maps: Tensor, steps: int, seed: int = 0, **settings: float) -> Tensor:
    """Latents [B, C, h, w] for maps [B, H, W]."""
    batch = {"segmentation": maps.long()}
    shape = model.latent_shape(*maps.shape[1:])
    wanted = replace(model.sampling, steps=steps, guidance_scale=1.0, **settings)
    for z in model.draw(batch, [seed + i for i in range(len(maps))], shape, wanted):
        pass
    return z


def decode(model: LatentDiffusion, z: Tensor, tiling_: Tiling) -> Tensor:
    model.autoencoder.tiling = tiling_
    return model.autoencoder.decode(z)


CALLS = {
    "decode untiled": lambda model, given, steps: decode(model, given["z"], untiled),
    "decode exact": lambda model, given, steps: decode(model, given["z"], tiling.exact),
    "decode spilled": lambda model, given, steps: decode(model, given["z"], tiling.offloaded),
    "decode blended": lambda model, given, steps: decode(model, given["z"], tiling.blended),
    "sample untiled": lambda model, given, steps: draw(model, given["map"], steps),
    "sample patchwise": lambda model, given, steps: draw(model, given["map"], steps, tile=TILE, overlap=OVERLAP),
}


@torch.no_grad()
def measured(folder: Path, options: argparse.Namespace) -> dict[str, float]:
    """The result of one call goes to --given's folder; its time, and its peak memory in MiB."""
    place, model = Path(options.given), load.load_run(folder)
    given = load_file(place / "given.safetensors")
    small = {"z": given["z"][:, :, :8, :8], "map": given["map"][:, :64, :64]}
    CALLS[options.measure](model, small, 1)  # what is made once
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before, started = resident("VmRSS"), time.perf_counter()
    result = CALLS[options.measure](model, given, options.steps)
    seconds, peak = time.perf_counter() - started, resident("VmHWM") - before
    save_file({"x": result.contiguous()}, place / f"{options.measure}.safetensors")
    return {"seconds": round(seconds, 2), "peak_mib": round(peak, 1)}


def resident(name: str) -> float:
    """VmRSS (now) or VmHWM (the most) of this process, in MiB."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def compare(folder: Path, options: argparse.Namespace) -> dict:
    """All calls, each in a new process, and what their results say beside each other."""
    figures, results, wanted = {}, {}, mosaic(folder, options.side)
    model = load.load_run(folder)
    cell, factor = model.size[0], model.autoencoder.factor
    with tempfile.TemporaryDirectory() as place:
        given = {"map": wanted[None], "z": torch.zeros(1, *model.latent_shape(options.side, options.side))}
        for name in sorted(CALLS, reverse=True):  # sampling first: decoding takes what it drew
            save_file(given, Path(place) / "given.safetensors")
            words = [sys.executable, "-m", "benchmarks.larger", str(folder), "--measure", name, "--given", place]
            told = subprocess.run([*words, "--steps", str(options.steps)], check=True, capture_output=True, text=True)
            figures[name] = json.loads(told.stdout)
            results[name] = load_file(Path(place) / f"{name}.safetensors")["x"]
            if name == "sample untiled":
                given["z"] = results[name]
    untiled = results["decode untiled"]
    for name in ("exact", "spilled", "blended"):
        figures[f"decode {name}"] |= {
            "memory_of_untiled": figures[f"decode {name}"]["peak_mib"] / figures["decode untiled"]["peak_mib"],
            "largest_difference_in_255ths": (results[f"decode {name}"] - untiled).abs().max().item() * 127.5,
        }
    last = tile_offset(model.grid(replace(model.sampling, steps=options.steps))[-1].item())  # tiles of the last step
    places = [place for place, _ in windows(options.side // factor, TILE, round(TILE * OVERLAP), offset=last)]
    lines = sorted({factor * end for place in places for end in (place.start, place.stop)} - {0, options.side})
    for name in ("untiled", "patchwise"):
        x = decode(model, results[f"sample {name}"], tiling.exact)[0].clamp(-1, 1)
        figures[f"sample {name}"] |= agreement(x, wanted, cell) | border_ratios(x, wanted, lines, cell)
        if options.pictures:
            image_grid.save_grid(x[None], options.pictures / f"{name}.png", columns=1)
    return figures


def sizes(folder: Path, options: argparse.Namespace) -> list[dict]:
    """Agreement at growing sizes, with timesteps shifted more and more."""
    model, rows = load.load_run(folder), []
    for side, count in ((32, 64), (64, 16), (128, 8), (256, 4)):
        area = mosaic(folder, 256 if side < 256 else 512)
        maps = area.unfold(0, side, side).unfold(1, side, side).flatten(0, 1)[:count]
        for shift in (0.5, 1.0, 2.0, 4.0):
            z = draw(model, maps, options.steps, shift=shift)
            x = model.autoencoder.decode(z).clamp(-1, 1)
            found = [agreement(one, wanted, model.size[0]) for one, wanted in zip(x, maps)]
            rows.append({"side": side, "shift": shift} | {n: float(np.mean([f[n] for f in found])) for n in found[0]})
    return rows


if __name__ == "__main__":
    main()
