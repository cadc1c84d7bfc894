"""Draw pictures from a trained run.

python sample.py --prompt "a large red star above a small blue circle on a gray background"
python sample.py --run runs/emoji --prompts-file prompts.txt --seed 0-15 --output outputs/emoji
"""

from latentdiff import cli

cli.answer_help(__doc__ + "\n" + cli.SAMPLE_OPTIONS)

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from latentdiff import load
from latentdiff.conditioning.text import TextCondition
from latentdiff.config import UserError
from latentdiff.latent_diffusion import LatentDiffusion
from latentdiff.training import pictures, run
from latentdiff.training.world import autocast, precision, start


def main(words: list[str]) -> None:
    options = cli.sample_arguments(words)
    device = start(options.device).device
    prompts = read_prompts(options)
    folder = run.find_run(options.run) if options.run else newest_run(bool(prompts))
    model = load.load_run(folder, device)
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"run {folder} is a stage-one run; sample.py needs a diffusion run (train_diffusion.py)")
    check_inputs(model, folder, prompts)
    if options.precision == "fp32":  # the same picture on every device
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    given = {
        n: v
        for n in ("steps", "sampler", "guidance_scale", "guidance_rescale", "eta")
        if (v := getattr(options, n)) is not None
    }
    settings = replace(model.sampling, **given)
    model.check(settings)
    seeds = cli.seeds(options.seed, options.num_images)
    jobs = [(prompt, seed) for prompt in prompts or [None] for seed in seeds]
    draw_all(model, folder, jobs, settings, options, precision(options.precision, device))


@torch.no_grad()
def draw_all(model: LatentDiffusion, folder: Path, jobs: list, settings, options, dtype: torch.dtype) -> None:
    """Draw every (prompt, seed), write each picture as it is done, then the grid."""
    output = Path(options.output)
    shape = model.latent_shape(options.height, options.width)
    texts = [prompt for prompt, _ in jobs if prompt is not None] + [options.negative_prompt or ""]
    model.tokens(list(dict.fromkeys(texts)))  # one that is too long is refused before anything is written
    writer = Writer(output, folder, settings, options.negative_prompt)
    bar = cli.progress(-(-len(jobs) // options.batch_size) * settings.steps, "sampling")
    started = time.perf_counter()
    for start_at in range(0, len(jobs), options.batch_size):
        prompts, seeds = zip(*jobs[start_at : start_at + options.batch_size])
        batch = model.tokens(list(prompts)) if prompts[0] is not None else {}
        negative = model.tokens([options.negative_prompt] * len(seeds)) if options.negative_prompt is not None else None
        with autocast(next(model.parameters()).device, dtype):
            for z in model.draw(batch, list(seeds), shape, settings, negative):
                bar.update()
        x = model.autoencoder.decode(z)
        if not torch.isfinite(x).all():
            raise UserError("the pictures are not finite numbers; try --precision fp32")
        writer.write(pictures.to_uint8(x), prompts, seeds)
    bar.close()
    if options.grid and len(jobs) > 1:
        writer.grid(columns=len(jobs) if len(jobs) < 5 else max(len(jobs) // len({p for p, _ in jobs}), 4))
    print(f"{len(jobs)} picture(s) in {time.perf_counter() - started:.1f} s: {output}")


class Writer:
    """00012-s7.png with the parameters inside, samples.jsonl, grid.png; the counter goes on, nothing is overwritten."""

    def __init__(self, output: Path, folder: Path, settings, negative: str | None) -> None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {output} cannot be a folder: {error.strerror}") from error
        self.output, self.drawn = output, []
        self.about = {"run": folder.name, "sampler": settings.sampler, "steps": settings.steps,
                      "guidance_scale": settings.guidance_scale, "guidance_rescale": settings.guidance_rescale,
                      "eta": settings.eta, "negative_prompt": negative}  # fmt: skip
        numbers = [int(p.name.split("-")[0]) for p in output.glob("*-s*.png") if p.name.split("-")[0].isdigit()]
        self.next = max(numbers, default=-1) + 1

    def write(self, images, prompts: tuple, seeds: tuple) -> None:
        for image, prompt, seed in zip(images, prompts, seeds):
            height, width = image.shape[:2]
            about = {"prompt": prompt, "seed": seed, "height": height, "width": width} | self.about
            info = PngInfo()
            info.add_text("latentdiff", json.dumps(about))
            info.add_text("parameters", _parameters(about))
            path = self.output / f"{self.next:05d}-s{seed}.png"
            Image.fromarray(image).save(path, pnginfo=info)
            with open(self.output / "samples.jsonl", "a") as file:
                file.write(json.dumps({"file_name": path.name} | about) + "\n")
            self.drawn.append(image)
            self.next += 1

    def grid(self, columns: int) -> None:
        path, number = self.output / "grid.png", 1
        while path.exists():
            path, number = self.output / f"grid-{number}.png", number + 1
        pictures.grid(np.stack(self.drawn), columns).save(path)


def _parameters(about: dict) -> str:
    """The text that other tools read out of a PNG."""
    negative = f"\nNegative prompt: {about['negative_prompt']}" if about["negative_prompt"] else ""
    return (
        f"{about['prompt'] or ''}{negative}\nSteps: {about['steps']}, Sampler: {about['sampler']}, "
        f"CFG scale: {about['guidance_scale']}, Seed: {about['seed']}, Size: {about['width']}x{about['height']}, "
        f"Model: {about['run']}"
    )


def read_prompts(options) -> list[str]:
    """--prompt (repeatable) and the lines of --prompts-file."""
    prompts = list(options.prompt or [])
    if options.prompts_file:
        try:
            prompts += [line.strip() for line in Path(options.prompts_file).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-file {options.prompts_file} cannot be read: {error}") from error
    return prompts


def newest_run(with_prompt: bool) -> Path:
    """The newest finished run that takes the given inputs."""
    for path in sorted(run.runs_root().glob("*/model.safetensors"), key=lambda p: -p.stat().st_mtime):
        kind = json.loads((path.parent / "recipe.json").read_text())
        wants = ["Text"] if with_prompt else []
        if kind["type"] == "DiffusionRecipe" and [c["type"] for c in kind["conditions"]] == wants:
            return path.parent
    wants = "a prompt" if with_prompt else "no prompt"
    raise UserError(f"no finished diffusion run in {run.runs_root()} takes {wants}; train one, or name it with --run")


def check_inputs(model: LatentDiffusion, folder: Path, prompts: list[str]) -> None:
    if model.tokenizer is not None and not prompts:
        raise UserError(f"run {folder} draws from text: give it --prompt")
    if model.tokenizer is None and prompts:
        raise UserError(f"run {folder} was trained without text; it takes no --prompt")
    others = [type(part).__name__ for part in model.conditioner.parts if not isinstance(part, TextCondition)]
    if others:
        raise UserError(f"run {folder} has conditions that sample.py cannot give yet: {', '.join(others)}")


if __name__ == "__main__":
    cli.run(main)
