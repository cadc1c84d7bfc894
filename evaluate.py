"""Measure a trained run: figures as JSON, and on the screen.

    python evaluate.py RUN [--output FILE.json] [--split val] [--prompts N] [--summary]

RUN            a run's folder or name, of either stage
--output FILE  where the figures go (default: evaluation.json in the run's folder)
--split NAME   which pictures are reconstructed: val (default), test or train
--summary      also write summary.json: psnr, prompt_accuracy and the seconds from the first training step to here
--prompts N    prompts of the drawn-shapes accuracy (default 500)
"""

from latentdiff import cli

cli.answer_help(__doc__)

import time
from pathlib import Path

import torch
from torch import nn

from latentdiff import load, recipe
from latentdiff.autoencoder import perceptual
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.config import UserError
from latentdiff.data import loader, shapes_reader
from latentdiff.data.shapes import Shapes, prompts
from latentdiff.latent_diffusion import LatentDiffusion
from latentdiff.metrics.reconstruction import psnr, ssim
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, pictures, run
from latentdiff.training.log import read_metrics
from latentdiff.training.world import autocast, precision, start

PROMPT_SEED = 20_000_000  # scenes of their own: neither training nor validation draws from it


def main(words: list[str]) -> None:
    options = cli.evaluate_arguments(words)
    started = time.perf_counter()
    device = start().device
    folder = run.find_run(options.run)
    r = run.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    model = load.load_run(folder, device)
    autoencoder = model if isinstance(model, Autoencoder) else model.autoencoder
    first_stage = r if isinstance(r, AutoencoderRecipe) else run.read_recipe(folder / "autoencoder", AutoencoderRecipe)
    figures = {"run": folder.name, "step": newest_step(folder), "split": options.split}
    figures |= reconstruction(autoencoder, recipe.open_data(r, options.split), find_lpips(first_stage))
    if isinstance(model, LatentDiffusion) and model.tokenizer is not None and isinstance(r.data, Shapes):
        figures |= prompt_accuracy(model, r.data, options.prompts, folder)
    checkpoint.write_json(Path(options.output or folder / "evaluation.json"), figures)
    for name, value in figures.items():
        print(f"  {name:<28}{value:.4f}" if isinstance(value, float) else f"  {name:<28}{value}")
    if options.summary:
        if "prompt_accuracy" not in figures:
            raise UserError(f"--summary is for text-to-image runs on drawn shapes; run {folder} is none")
        seconds = training_seconds(r, folder) + time.perf_counter() - started
        names = ("psnr", "prompt_accuracy")
        checkpoint.write_json(folder / "summary.json", {n: figures[n] for n in names} | {"seconds": round(seconds, 1)})
        print(f"  seconds, from the first training step to the last sample: {seconds:.0f}")


@torch.no_grad()
def reconstruction(autoencoder: Autoencoder, data, distance: nn.Module | None, limit: int = 1000) -> dict:
    """PSNR, SSIM and LPIPS of reconstructions of held-out pictures, from the mean of the posterior."""
    scores, device = {}, next(autoencoder.buffers()).device
    for batch in loader.in_order(data, range(min(limit, len(data))), 64):
        x = loader.images(batch, device)
        y = autoencoder.decode(autoencoder.encode(x)).clamp(-1, 1)
        found = {"psnr": psnr(x, y), "ssim": ssim(x, y)}
        if distance is not None:
            found["lpips"] = distance.to(device)(y, x).flatten()
        for name, values in found.items():
            scores.setdefault(name, []).append(values)
    if not scores:
        raise UserError("there are no held-out pictures to reconstruct; --split train takes those of the training")
    figures = {name: torch.cat(values).mean().item() for name, values in scores.items()}
    return {"reconstructions": min(limit, len(data))} | figures


def find_lpips(r: AutoencoderRecipe) -> perceptual.LPIPSDistance | None:
    """The distance that the autoencoder was trained with; without one there is no LPIPS figure."""
    return perceptual.build(r.loss.perceptual) if isinstance(r.loss.perceptual, perceptual.LPIPS) else None


def prompt_accuracy(model: LatentDiffusion, data: Shapes, count: int, folder: Path) -> dict:
    """The share of pictures in which a reader finds all that the prompt names and nothing else."""
    figures = {}
    for suffix, left_out, n in (("", False, count), ("_left_out", True, count // 2)):
        captions = prompts(data, n, PROMPT_SEED, left_out=left_out)
        x = torch.cat([draw(model, captions[i : i + 50], i) for i in range(0, n, 50)])
        result = shapes_reader.prompt_accuracy(x, captions)
        low, high = shapes_reader.wilson(sum(result.correct), n)
        figures |= {f"prompt_accuracy{suffix}": sum(result.correct) / n, f"prompt_accuracy{suffix}_low": low,
                    f"prompt_accuracy{suffix}_high": high, f"prompts{suffix}": n}  # fmt: skip
        figures |= {f"right_{name}{suffix}": rate for name, rate in result.rates.items() if name != "all"}
        pictures.save_grid(x[:64], folder / "samples" / f"evaluated{suffix}.png", columns=8)
    return figures


def draw(model: LatentDiffusion, captions: list[str], seed: int) -> torch.Tensor:
    device = next(model.parameters()).device
    with autocast(device, precision("auto", device)):
        return model.sample(captions, seed=seed).float()


def newest_step(folder: Path) -> int:
    rows = read_metrics(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def training_seconds(r: DiffusionRecipe, folder: Path) -> float:
    """What both stages took, by their own clocks: training, validation, statistics, cache, samples."""
    first_stage = run.find_run(r.autoencoder.path)
    return sum(read_metrics(f / "metrics.jsonl")[-1]["seconds"] for f in (first_stage, folder))


if __name__ == "__main__":
    cli.run(main)
