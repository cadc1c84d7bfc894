"""The parts of an evaluation. Each returns metrics and the protocol: how they were measured."""

import shutil
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentdiff.autoencoder import perceptual, pretrained
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.perceptual import LPIPSConfig, LPIPSDistance
from latentdiff.config import UserError
from latentdiff.data.shapes.dataset import ShapesConfig, prompts
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.evaluation import distances, features, image_sets, sample_images, stage_one, stage_two
from latentdiff.evaluation.clip_score import ClipScorer
from latentdiff.evaluation.image_sets import ImageDir
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.load import load_autoencoder
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe, condition_fields, open_data, with_condition_fields
from latentdiff.sampling import inputs
from latentdiff.sampling.pipeline import Pipeline, load_pipeline
from latentdiff.training import image_grid, run_dir
from latentdiff.training.distributed import World
from latentdiff.training.log import read_metrics
from latentdiff.training.precision import precision

PROMPT_SEED = 20_000_000  # of the prompts' scenes, which are in neither training nor validation data
COUNT = 1000  # images to sample, and the largest number of reconstructions
REFERENCE = 5  # at most this many real images per generated one

Result = tuple[dict, dict]  # metrics, protocol


class EvalRun(NamedTuple):
    """The run to be evaluated."""

    folder: Path
    recipe: AutoencoderRecipe | DiffusionRecipe
    pipeline: Pipeline | None  # None for a run of stage one
    autoencoder: Autoencoder
    lpips: LPIPSDistance | None
    backbone: str  # of lpips


def open_run(name: str, world: World) -> EvalRun:
    """Load a run, given its folder or name, on the device of this rank."""
    folder = run_dir.find_run(name)
    recipe, pipeline = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe), None
    if isinstance(recipe, DiffusionRecipe):
        pipeline = world.to_device(load_pipeline(folder))
        pipeline.model.cast_weights(precision("auto", world.device))  # as sample.py does
        autoencoder, first_stage = pipeline.autoencoder, run_dir.read_recipe(folder / "autoencoder", AutoencoderRecipe)
    else:
        autoencoder, first_stage = world.to_device(load_autoencoder(folder)), recipe
    lpips, backbone = find_lpips(first_stage)
    return EvalRun(folder, recipe, pipeline, autoencoder, lpips and lpips.to(world.device), backbone)


def find_lpips(recipe: AutoencoderRecipe) -> tuple[LPIPSDistance | None, str]:
    """The LPIPS that the autoencoder was trained with, or one whose weights exist on this machine; its backbone."""
    if isinstance(recipe.loss.perceptual, LPIPSConfig):
        return perceptual.build(recipe.loss.perceptual), recipe.loss.perceptual.backbone
    folder = pretrained.weights_dir()
    for backbone, names in pretrained.FILES.items():
        heads = f"lpips_v0.1_{pretrained.HEADS[backbone][0]}_lin.safetensors"
        if any((folder / name).is_file() for name in names) and (folder / heads).is_file():
            return perceptual.build(LPIPSConfig(backbone)), backbone
    return None, ""


def reconstruction_metrics(run: EvalRun, options: Namespace, world: World) -> Result:
    """Metrics of the reconstructions; for a run of stage one also of its latents."""
    data = open_data(run.recipe, options.split)
    if not len(data):
        raise UserError("there are no held-out images to reconstruct; --split train uses training images")
    count, history = min(options.count or COUNT, len(data)), read_metrics(run.folder / "metrics.jsonl")
    step = history[-1]["step"] if history else 0
    metrics = {"run": run.folder.name, "step": step, "split": options.split, "reconstructions": count}
    metrics |= stage_one.reconstruction_metrics(run.autoencoder, data, run.lpips, world, count)
    protocol = {"reconstructions": f"from the mean of the posterior; the first {count} images of {options.split}"}
    if run.lpips is not None:
        protocol["lpips"] = f"LPIPS 0.1, {run.backbone}"
    if run.pipeline is None and not options.summary:
        extractor = open_extractor(run, options, world)
        metrics |= stage_one.rfid(run.autoencoder, data, extractor, world, count)
        metrics |= stage_one.latent_metrics(run.autoencoder, data, world, count)
        metrics |= stage_one.equivariance(run.autoencoder, data, world)
        protocol["features"] = extractor.metadata
    return metrics, protocol


def prompt_metrics(run: EvalRun, options: Namespace, world: World) -> Result:
    """Text-to-image on drawn shapes: whether the samples show what their prompts name."""
    if run.pipeline.tokenizer is None or not isinstance(run.recipe.data, ShapesConfig):
        return {}, {}
    metrics, settings = {}, sampling_settings(run.pipeline, options)
    for suffix, held_out, count in (("", False, options.prompts), ("_held_out", True, options.prompts // 2)):
        captions = prompts(run.recipe.data, count, PROMPT_SEED, held_out=held_out)
        spec = SampleSpec(None, ("caption",), tuple(captions), count, 0)
        samples, _ = sample(run, spec, settings, f"prompts{suffix}", options, world)
        metrics |= stage_two.prompt_metrics(samples, captions, suffix)
        if world.is_main:
            images = np.stack([samples.item(i, 0)["image"] for i in range(min(64, count))])
            path = run.folder / "samples" / f"evaluated{suffix}.png"
            path.parent.mkdir(exist_ok=True)
            image_grid.grid(images, 8, scale=max(1, 96 // images.shape[2])).save(path)
    return metrics, {"prompts": {"prompt_seed": PROMPT_SEED, "seed": "image i: i"} | asdict(settings)}


def sample_metrics(run: EvalRun, options: Namespace, world: World) -> Result:
    """Samples of the run, or the images of --samples, against real images."""
    train, held_out = open_data(run.recipe, "train"), open_data(run.recipe, options.split)
    samples, spec, settings, cost = open_samples(run, options, world)
    real = image_sets.open_folder(options.reference, *run.recipe.data.image_size) if options.reference else train
    n = min(len(real), REFERENCE * spec.count)
    extractor = open_extractor(run, options, world)
    sample_features = image_sets.extract(extractor, samples, spec.count, world)
    real_features = image_sets.extract(extractor, real, n, world)
    metrics = {"samples": spec.count, "reference": n} | stage_two.distribution_metrics(sample_features, real_features)
    if len(held_out) > 1:
        held_out_features = image_sets.extract(extractor, held_out, min(len(held_out), spec.count), world)
        known = real_features if real is train else image_sets.extract(extractor, train, min(len(train), n), world)
        metrics |= stage_two.held_out_metrics(held_out_features, real_features)
        metrics |= distances.memorization(sample_features.features, known.features, held_out_features.features)
    if not options.samples:
        metrics |= stage_two.target_metrics(samples, spec, run.lpips, world)
        if options.clip:
            metrics |= stage_two.clip_score(ClipScorer(options.clip, world.device), samples, spec, world)
    seeds = {"count": spec.count, "seed": f"image i: {options.seed} + i"}
    source = options.samples or {"conditions": options.prompts_file or options.split} | seeds | asdict(settings)
    reference = f"the first {n} images of {options.reference or 'train'}, preprocessed as in training"
    return metrics | cost, {"features": extractor.metadata, "samples": source, "reference": reference}


def folder_metrics(options: Namespace, world: World) -> Result:
    """Two folders of images, compared at the size of the first reference image."""
    size = image_sets.size_of_first(options.reference)
    samples, real = (image_sets.open_folder(path, *size) for path in (options.samples, options.reference))
    extractor = features.build(options.features, real, None, Path(options.samples).resolve().parent, world)
    sample_features, real_features = (image_sets.extract(extractor, data, len(data), world) for data in (samples, real))
    protocol = {"features": extractor.metadata, "size": f"{size[0]} x {size[1]}, resized to cover and center-cropped",
                "samples": options.samples, "reference": options.reference}  # fmt: skip
    metrics = {"samples": len(samples), "reference": len(real)}
    return metrics | stage_two.distribution_metrics(sample_features, real_features), protocol


def sample_spec(run: EvalRun, options: Namespace) -> SampleSpec:
    """What to sample: the lines of --prompts-file, or the conditions of --split (of train if that split is empty)."""
    recipe, captions = run.recipe, read_prompts(options, run.pipeline)
    data = open_data(recipe, options.split)
    data = data if len(data) else open_data(recipe, "train")
    data = with_condition_fields(data, recipe.conditions, recipe.derived_fields)
    count = options.count or len(captions) or COUNT
    return SampleSpec(data, condition_fields(recipe.conditions), captions, count, options.seed)


def open_samples(run: EvalRun, options: Namespace, world: World) -> tuple[Any, SampleSpec, SamplingConfig, dict]:
    """The images of --samples, or samples of the run, with what they show, the sampling settings and the cost."""
    spec, settings = sample_spec(run, options), sampling_settings(run.pipeline, options)
    if options.samples:
        samples = image_sets.open_folder(options.samples, *run.recipe.data.image_size)
        return samples, spec._replace(count=min(len(samples), spec.count)), settings, {}
    samples, cost = sample(run, spec, settings, "samples", options, world)
    return samples, spec, settings, cost


def sample(
    run: EvalRun, spec: SampleSpec, settings: SamplingConfig, name: str, options: Namespace, world: World
) -> tuple[ImageDir, dict[str, float]]:
    """Sample into a folder of the run named by a hash of weights and settings; existing images are kept."""
    digest = stage_two.digest(run.pipeline, (settings, spec.captions, spec.seed, options.split, options.batch_size))
    folder = run.folder / "evaluation" / f"{name}-{digest}"
    if options.summary and world.is_main:  # it reports the time of all samples
        shutil.rmtree(folder, ignore_errors=True)
    world.barrier()
    cost = sample_images.sample_to_folder(folder, run.pipeline, spec, settings, world, options.batch_size)
    return ImageDir(folder, spec.count), cost


def open_extractor(run: EvalRun, options: Namespace, world: World) -> features.Extractor:
    """The network of --features."""
    return features.build(options.features, open_data(run.recipe, "train"), run.autoencoder, run.folder, world)


def sampling_settings(pipeline: Pipeline, options: Namespace) -> SamplingConfig:
    """The settings of the run, replaced by those of the command line."""
    names = ("sampler", "steps", "guidance_scale")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = replace(pipeline.model.sampling, **changes)
    pipeline.model.validate_sampling(settings)
    return settings


def read_prompts(options: Namespace, pipeline: Pipeline) -> tuple[str, ...]:
    """The non-empty lines of --prompts-file."""
    if not options.prompts_file:
        return ()
    if pipeline.tokenizer is None or len(pipeline.conditioner.parts) > 1:
        raise UserError("--prompts-file is for runs that are conditioned on text alone")
    captions = tuple(inputs.read_prompts(None, options.prompts_file))
    if not captions:
        raise UserError(f"--prompts-file {options.prompts_file} is empty; it must have one prompt per line")
    return captions
