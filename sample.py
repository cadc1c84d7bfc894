"""Sample images from a trained run.

python sample.py --prompt "a large red star above a small blue circle on a gray background"
python sample.py --run runs/emoji --prompts-file prompts.txt --seed 0-15 --output outputs/emoji
python sample.py --run runs/semantic --segmentation map.png
python sample.py --run RUN --help        the inputs that this run requires
"""

from latentdiff import cli
from latentdiff.sampling import options as sample_options

cli.answer_help(__doc__ + "\n" + sample_options.HELP, sample_options.describe_run)

import time
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from latentdiff import load
from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Tiling, untiled
from latentdiff.config import UserError
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe
from latentdiff.sampling import inputs, requirements
from latentdiff.sampling.extra_guidance import ExtraGuidance
from latentdiff.sampling.inputs import Request
from latentdiff.sampling.output import ImageWriter
from latentdiff.sampling.pipeline import Pipeline, load_pipeline, noised_init
from latentdiff.training import image_grid, precision, progress, run_dir
from latentdiff.training.distributed import init_distributed

SETTINGS = (  # fields of SamplingConfig that are options too
    "steps", "sampler", "guidance_scale", "guidance_rescale", "guidance_interval", "eta", "timestep_spacing",
    "quantize_denoised", "timestep_shift", "tile_overlap",
)  # fmt: skip


def main(argv: list[str]) -> None:
    options = sample_options.sample_arguments(argv)
    device = init_distributed(options.device).device
    dtype = precision.precision(options.precision, device)
    if options.precision == "fp32":  # the same image on every device
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    prompts = inputs.read_prompts(options.prompt, options.prompts_file)
    names = {name for name in requirements.all_inputs() if getattr(options, name)} | ({"prompt"} if prompts else set())
    if options.classifier:  # the class is then an input of the classifier
        names.discard("class")
    folder = run_dir.find_run(options.run) if options.run else requirements.newest_run(names)
    if isinstance(run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe), AutoencoderRecipe):
        raise UserError(f"run {folder} is a stage-one run; sample.py needs a diffusion run (train_diffusion.py)")
    pipeline = precision.to_device(load_pipeline(folder, device), device)
    requirements.check(folder, pipeline.conditions[:-1], names)
    settings = sampling_settings(pipeline, options)
    if options.autoguide:
        pipeline.model.set_weak_model(load.load_weak_model(options.autoguide, device))
    pipeline.model.cast_weights(dtype)
    pipeline.model.validate_sampling(settings)
    pipeline.autoencoder.tiling = autoencoder_tiling(settings, options)
    extra_guidance = ExtraGuidance(pipeline, options)
    requests = read_requests(pipeline, folder, prompts, options)
    check_guidance(pipeline, settings, options)
    check_requests(pipeline, requests, options)
    sample_all(pipeline, folder, requests, settings, options, dtype, extra_guidance)


def sampling_settings(pipeline: Pipeline, options: Namespace) -> SamplingConfig:
    """The settings of the run, replaced by those of the command line."""
    factor = pipeline.autoencoder.factor
    if 0 < options.tile_size < factor:
        raise UserError(f"--tile-size is {options.tile_size}; it must be at least {factor} pixels, one latent position")
    changes = {name: value for name in SETTINGS if (value := getattr(options, name)) is not None}
    return replace(pipeline.model.sampling, **changes, tile_size=options.tile_size // factor)


def autoencoder_tiling(settings: SamplingConfig, options: Namespace) -> Tiling:
    """How encoder and decoder process images: as --tile-size and --tiling say."""
    blended = partial(tiling.blended, tile=settings.tile_size, overlap=settings.overlap)
    choices = {"exact": tiling.exact, "offloaded": tiling.offloaded, "blended": blended}
    if options.tiling not in choices:
        raise UserError(f"--tiling {options.tiling}: it must be one of {', '.join(choices)}")
    if not settings.tile_size and options.tiling != "exact":
        raise UserError(f"--tiling {options.tiling} needs --tile-size, because sampling must be tiled as well")
    return choices[options.tiling] if settings.tile_size else untiled


def read_requests(pipeline: Pipeline, folder: Path, prompts: list[str], options: Namespace) -> list[Request]:
    """One request per image, from the options of the run's conditions (and of the classifier)."""
    conditions, class_names = pipeline.conditions, load.class_names(folder)
    if options.classifier:
        other = run_dir.find_run(options.classifier)
        conditions = (*conditions, run_dir.read_recipe(other, ClassifierRecipe).label)
        class_names |= load.class_names(other)
    seeds, factor = sample_options.read_seeds(options.seed, options.num_images), pipeline.autoencoder.factor
    return inputs.read_requests(options, prompts, conditions, class_names, seeds, factor, pipeline.sr_factor)


def check_guidance(pipeline: Pipeline, settings: SamplingConfig, options: Namespace) -> None:
    """Refuse options that would have no effect."""
    if options.negative_prompt is not None:
        if pipeline.tokenizer is None:
            raise UserError("--negative-prompt needs a run with a Text condition; this run has none")
        if options.autoguide:
            raise UserError("--negative-prompt and --autoguide both replace the unconditional output; use one of them")
    if settings.guidance_scale == 1 and (options.negative_prompt is not None or options.autoguide):
        option = "--autoguide" if options.autoguide else "--negative-prompt"
        raise UserError(f"{option} has no effect at guidance scale 1; set another one, such as --guidance-scale 2")


def check_requests(pipeline: Pipeline, requests: list[Request], options: Namespace) -> None:
    """Refuse, before anything is sampled, what would fail later."""
    captions = [request.prompt for request in requests if request.prompt is not None] + [options.negative_prompt or ""]
    if pipeline.tokenizer is not None:
        pipeline.tokenizer.encode(list(dict.fromkeys(captions)), strict=True)
    for height, width in {request.size for request in requests} - {None}:
        if (options.height or height, options.width or width) != (height, width):
            raise UserError(
                f"--height and --width are {options.height or height} and {options.width or width}, but the inputs "
                f"need {width}x{height}; leave them out"
            )
    if options.init_image and any(request.size for request in requests):
        raise UserError("--init-image needs a run that is not conditioned on an image or a map")
    if options.init_image is None and options.strength is not None:
        raise UserError("--strength is for image-to-image sampling; it needs --init-image")
    if options.init_image:
        inputs.read_init_image(options.init_image, 8, 8)
        noised_init(pipeline.model, torch.zeros(1), torch.zeros(1), torch.zeros(1), strength(options))
    pipeline.latent_shape(options.height, options.width)


def strength(options: Namespace) -> float:
    return 0.6 if options.strength is None else options.strength


@torch.no_grad()
def sample_all(
    pipeline: Pipeline, folder: Path, requests: list[Request], settings: SamplingConfig, options: Namespace,
    dtype: torch.dtype, extra_guidance: ExtraGuidance,
) -> None:  # fmt: skip
    """Sample in batches, write each image when it is done, then the grid."""
    writer = ImageWriter(Path(options.output), metadata(folder, settings, options))
    bar = progress.bar(-(-len(requests) // options.batch_size) * settings.steps, "sampling")
    start = time.perf_counter()
    for batch in inputs.batches(requests, options.batch_size):
        with precision.autocast(pipeline.device, dtype):
            x, steps = sample_batch(pipeline, batch, settings, options, extra_guidance, bar)
        if not torch.isfinite(x).all():
            raise UserError("the sampled images contain values that are not finite; try --precision fp32")
        steps = [image_grid.to_uint8(step) for step in steps]
        for i, (image, request) in enumerate(zip(image_grid.to_uint8(x), batch)):
            row = [step[i] for step in steps] + [image] if steps else []
            writer.write(image, request.prompt, request.seed, request.metadata, row)
    bar.close()
    per_input = len({request.seed for request in requests})
    grid = writer.grid(len(requests) if len(requests) < 5 else max(per_input, 4)) if options.grid else None
    print(f"{len(requests)} image(s) in {time.perf_counter() - start:.1f} s: {grid or options.output}")


def sample_batch(
    pipeline: Pipeline, requests: list[Request], settings: SamplingConfig, options: Namespace,
    extra_guidance: ExtraGuidance, bar,
) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """The images [B, 3, H, W] of a batch and, with --progressive, up to 8 intermediate results."""
    count, (height, width) = len(requests), pipeline.image_size
    height, width = requests[0].size or (options.height or height, options.width or width)
    fields = {name: [request.fields[name] for request in requests] for name in requests[0].fields}
    if pipeline.tokenizer is not None:
        fields.setdefault("caption", [""] * count)
    batch, negative, init = pipeline.prepare(fields), None, None
    if options.negative_prompt is not None:
        negative = pipeline.prepare(fields | {"caption": [options.negative_prompt] * count})
    if options.init_image:
        x = inputs.read_init_image(options.init_image, height, width).to(pipeline.device)
        init = pipeline.autoencoder.encode(x).expand(count, -1, -1, -1)
    latents = []
    for z in pipeline.latents(
        batch, [request.seed for request in requests], settings, (height, width), negative=negative, init=init,
        strength=strength(options), wrap=extra_guidance(batch, count),
    ):  # fmt: skip
        latents = [*latents, z] if options.progressive else [z]
        bar.update()
    shown = latents[:: -(-len(latents) // 8)] if options.progressive else []
    return pipeline.decode(z, batch), [pipeline.decode(step, batch) for step in shown]


def metadata(folder: Path, settings: SamplingConfig, options: Namespace) -> dict:
    """What is stored in every image of this call."""
    values = {"run": folder.name, "negative_prompt": options.negative_prompt}
    values |= {name: getattr(settings, name) for name in SETTINGS}
    for name, scale in (("guide_image", "guide_image_scale"), ("classifier", "classifier_scale")):
        if getattr(options, name):
            values |= {name: getattr(options, name), scale: getattr(options, scale)}
    if options.tile_size:
        values |= {"tile_size": options.tile_size, "tiling": options.tiling}
    if options.init_image:
        values |= {"init_image": options.init_image, "strength": strength(options)}
    return values


if __name__ == "__main__":
    cli.run(main)
