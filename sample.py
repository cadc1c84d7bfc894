"""Draw pictures from a trained run.

python sample.py --prompt "a large red star above a small blue circle on a gray background"
python sample.py --run runs/emoji --prompts-file prompts.txt --seed 0-15 --output outputs/emoji
python sample.py --run runs/semantic --segmentation map.png
python sample.py --run RUN --help        what this run draws from
"""

from latentdiff import cli
from latentdiff.sampling import options as sampling_options

cli.answer_help(__doc__ + "\n" + sampling_options.SAMPLE_OPTIONS, cli.about_run)

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from latentdiff import load
from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Through, whole
from latentdiff.config import UserError
from latentdiff.data.fields import stack_field
from latentdiff.model import LatentDiffusion, SamplingConfig
from latentdiff.sampling import inputs, requirements
from latentdiff.sampling.extra_guidance import ExtraGuidance
from latentdiff.sampling.output import ImageWriter
from latentdiff.training import image_grid, progress, run_dir
from latentdiff.training.distributed import start
from latentdiff.training.precision import autocast, place, precision

SETTINGS = (  # of a run, and options
    "steps", "sampler", "guidance_scale", "guidance_rescale", "guidance_interval", "eta", "spacing",
    "quantize_denoised", "shift", "overlap",
)  # fmt: skip


def main(words: list[str]) -> None:
    options = sampling_options.sample_arguments(words)
    device = start(options.device).device
    dtype = precision(options.precision, device)
    prompts = read_prompts(options)
    given = {name for name in inputs.READERS if getattr(options, name)} | ({"prompt"} if prompts else set())
    if options.classifier:  # then the class is for it
        given.discard("class")
    folder = run_dir.find_run(options.run) if options.run else newest_run(given)
    model = place(load.load_run(folder, device), device)
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"run {folder} is a stage-one run; sample.py needs a diffusion run (train_diffusion.py)")
    recipe = cli.read_json(folder / "recipe.json")
    requirements.check(folder, recipe, given)
    if options.precision == "fp32":  # the same picture on every device
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    if 0 < options.tile < model.autoencoder.factor:
        raise UserError(f"--tile {options.tile} is less than one latent place, {model.autoencoder.factor} pixels")
    own = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    settings = replace(model.sampling, **own, tile_size=options.tile // model.autoencoder.factor)
    if options.autoguide:
        model.guide_by(load.load_guide(options.autoguide, device))
    model.cast_weights(dtype)
    model.check(settings)
    model.autoencoder.through = through(settings, options)
    seeds = sampling_options.seeds(options.seed, options.num_images)
    steering, names = ExtraGuidance(model, options), load.names_of(folder)
    if options.classifier:
        other = run_dir.find_run(options.classifier)
        recipe["conditions"] += cli.read_json(other / "recipe.json")["conditions"]
        names |= load.names_of(other)
    jobs = inputs.jobs(options, prompts, model, recipe, names, seeds)
    check_guidance(model, settings, options)
    check_sizes(jobs, model, options)
    draw_all(model, folder, jobs, settings, options, dtype, steering)


def through(settings: SamplingConfig, options) -> Through:
    """How pictures and latents go through the autoencoder: as --tile and --coding say."""
    ways = {
        "exact": tiling.exact,
        "spilled": tiling.spilled,
        "blended": partial(tiling.blended, tile=settings.tile_size, overlap=settings.common),
    }
    if options.coding not in ways:
        raise UserError(f"--coding {options.coding}: it must be one of {', '.join(ways)}")
    if not settings.tile_size and options.coding != "exact":
        raise UserError(f"--coding {options.coding} goes with --tile: larger pictures are drawn in tiles as well")
    return ways[options.coding] if settings.tile_size else whole


def check_guidance(model: LatentDiffusion, settings: SamplingConfig, options) -> None:
    """Refuse what would change nothing."""
    if options.negative_prompt is not None:
        if model.tokenizer is None:
            raise UserError("--negative-prompt is for runs with text; this one has none")
        if options.autoguide:
            raise UserError("--negative-prompt and --autoguide each say what guidance moves away from; give one")
    if settings.guidance_scale == 1 and (options.negative_prompt is not None or options.autoguide):
        option = "--autoguide" if options.autoguide else "--negative-prompt"
        raise UserError(f"{option} does nothing at guidance scale 1; give another one, such as --guidance-scale 2")


def check_sizes(jobs: list[inputs.Job], model: LatentDiffusion, options) -> None:
    """Refuse what would fail in the middle, before anything is written."""
    inputs.check_masks(jobs)
    texts = [job.prompt for job in jobs if job.prompt is not None] + [options.negative_prompt or ""]
    model.tokens(list(dict.fromkeys(texts)))
    for height, width in {job.size for job in jobs} - {None}:
        if (options.height or height, options.width or width) != (height, width):
            raise UserError(
                f"--height and --width ask for {options.width or width}x{options.height or height}, the inputs for "
                f"{width}x{height}; leave them out"
            )
    if options.init_image and any(job.size for job in jobs):
        raise UserError("--init-image goes with runs that read no picture or map")
    if options.init_image is None and options.strength is not None:
        raise UserError("--strength says how much of an --init-image is drawn anew; there is none")
    if options.init_image:
        inputs.start_image(options.init_image, 8, 8)  # can it be read?
        model.noised(torch.zeros(1), torch.zeros(1), torch.zeros(1), _strength(options))


def _strength(options) -> float:
    return 0.6 if options.strength is None else options.strength


@torch.no_grad()
def draw_all(
    model: LatentDiffusion, folder: Path, jobs: list[inputs.Job], settings: SamplingConfig, options, dtype: torch.dtype,
    steering: ExtraGuidance,
) -> None:  # fmt: skip
    """Draw every job, write each picture as it is done, then the grid."""
    model.latent_shape(options.height, options.width)
    about = {"run": folder.name, "negative_prompt": options.negative_prompt}
    about |= {name: getattr(settings, name) for name in SETTINGS}
    for name in ("guide", "classifier"):
        if getattr(options, name):
            about |= {name: getattr(options, name), f"{name}_scale": getattr(options, f"{name}_scale")}
    if options.tile:
        about |= {"tile": options.tile, "coding": options.coding}
    if options.init_image:
        about |= {"init_image": options.init_image, "strength": _strength(options)}
    writer = ImageWriter(Path(options.output), about)
    bar = progress.bar(-(-len(jobs) // options.batch_size) * settings.steps, "sampling")
    started = time.perf_counter()
    for batch in inputs.batches(jobs, options.batch_size):
        found, finished, rows = model.fields(fields_of(batch)), None, []
        with autocast(next(model.parameters()).device, dtype):
            for z in latents(model, batch, found, settings, options, steering):
                finished = z
                rows.append(z)
                bar.update()
            shown = rows[:: -(-len(rows) // 8)] if options.progressive else []
            *steps, x = (model.finished(model.autoencoder.decode(z), found) for z in (*shown, finished))
        if not torch.isfinite(x).all():
            raise UserError("the pictures are not finite numbers; try --precision fp32")
        steps = [image_grid.to_uint8(step) for step in steps]
        for i, (image, job) in enumerate(zip(image_grid.to_uint8(x), batch)):
            row = [step[i] for step in steps] + [image] if steps else []
            writer.write(image, job.prompt, job.seed, job.about, row)
    bar.close()
    per_input = len({job.seed for job in jobs})
    sheet = writer.grid(len(jobs) if len(jobs) < 5 else max(per_input, 4)) if options.grid else None
    print(f"{len(jobs)} picture(s) in {time.perf_counter() - started:.1f} s: {sheet or options.output}")


def fields_of(batch: list[inputs.Job]) -> dict[str, Tensor]:
    return {name: stack_field(name, [job.fields[name] for job in batch]) for name in batch[0].fields}


def latents(
    model: LatentDiffusion,
    batch: list[inputs.Job],
    found: dict,
    settings: SamplingConfig,
    options,
    steering: ExtraGuidance,
) -> Iterator[Tensor]:
    """The guesses at z0 of a batch, one per step."""
    count, device = len(batch), next(model.parameters()).device
    height, width = batch[0].size or (options.height or model.size[0], options.width or model.size[1])
    prompts = [job.prompt or "" for job in batch]
    conditions = found | model.tokens(prompts)
    negative = None
    if options.negative_prompt is not None:
        negative = found | model.tokens([options.negative_prompt] * count)
    begin = None
    if options.init_image:
        x = inputs.start_image(options.init_image, height, width).to(device)
        begin = model.autoencoder.encode(x).expand(count, -1, -1, -1)
    shape, seeds = model.latent_shape(height, width), [job.seed for job in batch]
    around = steering(found, count)
    yield from model.draw(conditions, seeds, shape, settings, negative, begin, _strength(options), around)


def read_prompts(options) -> list[str]:
    """--prompt (repeatable) and the lines of --prompts-file."""
    prompts = list(options.prompt or [])
    if options.prompts_file:
        try:
            prompts += [line.strip() for line in Path(options.prompts_file).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-file {options.prompts_file} cannot be read: {error}") from error
    return prompts


def newest_run(given: set[str]) -> Path:
    """The newest finished run that takes the given inputs; one that has learned to fill before one that has not."""
    runs = sorted(run_dir.runs_root().glob("*/model.safetensors"), key=lambda p: -p.stat().st_mtime)
    folders = [path.parent for path in runs if (path.parent / "recipe.json").is_file()]
    recipes = [(folder, cli.read_json(folder / "recipe.json")) for folder in folders]
    fitting = [(f, r) for f, r in recipes if r["type"] == "DiffusionRecipe" and requirements.takes(r, given)]
    if not fitting:
        wants = " and ".join(map(requirements.option, sorted(given))) or "no input"
        raise UserError(
            f"no finished diffusion run in {run_dir.runs_root()} takes {wants}; train one, or name it with --run"
        )
    return min(fitting, key=lambda pair: set(requirements.needed(pair[1])) != given)[0]


if __name__ == "__main__":
    cli.run(main)
