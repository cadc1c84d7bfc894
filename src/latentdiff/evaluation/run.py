"""The parts of an evaluation. Each gives figures, and the protocol that belongs to them."""

import shutil
from argparse import Namespace
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from latentdiff import load, recipe
from latentdiff.autoencoder import perceptual, pretrained
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.perceptual import LPIPSConfig, LPIPSDistance
from latentdiff.config import UserError
from latentdiff.data.shapes.dataset import ShapesConfig, prompts
from latentdiff.evaluation import distances, features, image_sets, sample_images, stage_one, stage_two
from latentdiff.evaluation.clip_score import Clip
from latentdiff.evaluation.image_sets import ImageDir
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import image_grid, run_dir
from latentdiff.training.distributed import World
from latentdiff.training.log import read_metrics
from latentdiff.training.precision import precision

PROMPT_SEED = 20_000_000  # scenes of their own: neither training nor validation draws from it
COUNT = 1000  # pictures that are drawn, and at most reconstructed
REFERENCE = 5  # real pictures at most, as a multiple of the drawn ones

Report = tuple[dict, dict]  # figures, protocol


class EvalRun(NamedTuple):
    """The run that is measured."""

    folder: Path
    recipe: AutoencoderRecipe | DiffusionRecipe
    model: Autoencoder | LatentDiffusion
    autoencoder: Autoencoder
    lpips: LPIPSDistance | None
    backbone: str  # of lpips


def open_subject(name: str, world: World) -> EvalRun:
    folder = run_dir.find_run(name)
    r = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    model = world.to_device(load.load_run(folder, world.device))
    alone = isinstance(model, Autoencoder)
    if not alone:
        model.cast_weights(precision("auto", world.device))  # as drawing computes
    first_stage = r if alone else run_dir.read_recipe(folder / "autoencoder", AutoencoderRecipe)
    lpips, backbone = find_lpips(first_stage)
    lpips = None if lpips is None else lpips.to(world.device)
    return EvalRun(folder, r, model, model if alone else model.autoencoder, lpips, backbone)


def find_lpips(r: AutoencoderRecipe) -> tuple[LPIPSDistance | None, str]:
    """The distance that the autoencoder was trained with, else one whose weights are at hand; its backbone's name."""
    if isinstance(r.loss.perceptual, LPIPSConfig):
        return perceptual.build(r.loss.perceptual), r.loss.perceptual.backbone
    for backbone, files in pretrained.FILES.items():
        heads = f"lpips_v0.1_{pretrained.HEADS[backbone][0]}_lin.safetensors"
        if any((pretrained.weights_dir() / name).is_file() for name in files) and (pretrained.weights_dir() / heads).is_file():
            return perceptual.build(LPIPSConfig(backbone)), backbone
    return None, ""


def newest_step(folder: Path) -> int:
    rows = read_metrics(folder / "metrics.jsonl")
    return rows[-1]["step"] if rows else 0


def reconstructions(subject: EvalRun, options: Namespace, world: World) -> Report:
    """What the autoencoder loses; of a stage-one run also what its latents are like."""
    data = recipe.open_data(subject.recipe, options.split)
    if not len(data):
        raise UserError("there are no held-out pictures to reconstruct; --split train takes those of the training")
    count = min(options.count or COUNT, len(data))
    figures = {"run": subject.folder.name, "step": newest_step(subject.folder), "split": options.split}
    figures |= {"reconstructions": count}
    figures |= stage_one.reconstruction(subject.autoencoder, data, subject.lpips, world, count)
    protocol = {"reconstructions": f"from the mean of the posterior; the first {count} pictures of {options.split}"}
    if subject.lpips is not None:
        protocol["lpips"] = f"LPIPS 0.1, {subject.backbone}"
    if isinstance(subject.model, Autoencoder) and not options.summary:
        extractor = find_features(subject, options, world)
        figures |= stage_one.rfid(subject.autoencoder, data, extractor, world, count)
        figures |= stage_one.latents(subject.autoencoder, data, world, count)
        figures |= stage_one.equivariance(subject.autoencoder, data, world)
        protocol["features"] = extractor.about
    return figures, protocol


def prompted(subject: EvalRun, options: Namespace, world: World) -> Report:
    """Text to drawn shapes: what a reader finds of what was asked for."""
    r, model = subject.recipe, subject.model
    if model.tokenizer is None or not isinstance(r.data, ShapesConfig):
        return {}, {}
    figures, settings = {}, chosen(model, options)
    for suffix, held_out, n in (("", False, options.prompts), ("_held_out", True, options.prompts // 2)):
        captions = prompts(r.data, n, PROMPT_SEED, held_out=held_out)
        wanted = SampleSpec(None, ("caption",), tuple(captions), n, 0)
        drawn, _ = draw(subject, wanted, settings, f"prompts{suffix}", options, world)
        figures |= stage_two.accuracy(drawn, captions, suffix)
        if world.is_main:
            shown = np.stack([drawn.item(i, 0)["image"] for i in range(min(64, n))])
            path = subject.folder / "samples" / f"evaluated{suffix}.png"
            path.parent.mkdir(exist_ok=True)
            image_grid.grid(shown, 8, scale=max(1, 96 // shown.shape[2])).save(path)
    return figures, {"prompts": {"prompt_seed": PROMPT_SEED, "seed": "picture i: i"} | asdict(settings)}


def samples(subject: EvalRun, options: Namespace, world: World) -> Report:
    """What is drawn, or lies in --samples, against real pictures."""
    r, size = subject.recipe, subject.recipe.data.image_size
    train, held_out = recipe.open_data(r, "train"), recipe.open_data(r, options.split)
    drawn, wanted, settings, cost = drawn_ones(subject, options, world)
    real = image_sets.open_folder(options.reference, *size) if options.reference else train
    n = min(len(real), REFERENCE * wanted.count)
    extractor = find_features(subject, options, world)
    ours, theirs = (
        image_sets.extract(extractor, drawn, wanted.count, world),
        image_sets.extract(extractor, real, n, world),
    )
    figures = {"samples": wanted.count, "reference": n} | stage_two.compare(ours, theirs)
    if len(held_out) > 1:
        others = image_sets.extract(extractor, held_out, min(len(held_out), wanted.count), world)
        known = theirs if real is train else image_sets.extract(extractor, train, min(len(train), n), world)
        figures |= stage_two.in_real_pictures(others, theirs)
        figures |= distances.memorisation(ours.features, known.features, others.features)
    if not options.samples:
        figures |= stage_two.against_truth(drawn, wanted, subject.lpips, world)
        if options.clip:
            figures |= stage_two.clip_score(Clip(options.clip, world.device), drawn, wanted, world)
    source = options.samples or {"conditions": options.prompts_file or options.split, "count": wanted.count,
                                 "seed": f"picture i: {options.seed} + i"} | asdict(settings)  # fmt: skip
    reference = f"the first {n} pictures of {options.reference or 'train'}, preprocessed as in training"
    return figures | cost, {"features": extractor.about, "samples": source, "reference": reference}


def drawn_ones(subject: EvalRun, options: Namespace, world: World) -> tuple[Any, SampleSpec, SamplingConfig, dict]:
    """The pictures of --samples, or those that the run draws; what they are to show, how, and what they cost."""
    r, settings, captions = subject.recipe, chosen(subject.model, options), read_prompts(options, subject.model)
    data = recipe.open_data(r, options.split)
    data = recipe.with_fields(r, data if len(data) else recipe.open_data(r, "train"))
    count = options.count or len(captions) or COUNT
    wanted = SampleSpec(data, recipe.reads(r), captions, count, options.seed)
    if options.samples:
        drawn = image_sets.open_folder(options.samples, *r.data.image_size)
        return drawn, wanted._replace(count=min(len(drawn), count)), settings, {}
    drawn, cost = draw(subject, wanted, settings, "samples", options, world)
    return drawn, wanted, settings, cost


def folders(options: Namespace, world: World) -> Report:
    """Two folders of pictures; the first picture of the reference says at what size both are compared."""
    size = image_sets.size_of_first(options.reference)
    drawn, real = (image_sets.open_folder(path, *size) for path in (options.samples, options.reference))
    extractor = features.find(options.features, real, None, Path(options.samples).resolve().parent, world)
    found = [image_sets.extract(extractor, data, len(data), world) for data in (drawn, real)]
    protocol = {"features": extractor.about, "size": f"{size[0]} x {size[1]}, resized to cover and cropped",
                "samples": options.samples, "reference": options.reference}  # fmt: skip
    return {"samples": len(drawn), "reference": len(real)} | stage_two.compare(*found), protocol


# ---- parts of parts


def draw(
    subject: EvalRun, wanted: SampleSpec, settings: SamplingConfig, name: str, options: Namespace, world: World
) -> tuple[ImageDir, dict]:
    """A folder of drawn pictures in the run's folder, named by all that they depend on; what is there is kept."""
    depends = (settings, wanted.captions, wanted.seed, options.split, options.batch_size)
    depends += ("known pixels stay",) if "mask" in wanted.reads else ()  # as they once did not
    folder = subject.folder / "evaluation" / f"{name}-{stage_two.digest(subject.model, depends)}"
    if options.summary and world.is_main:  # its seconds are to be true
        shutil.rmtree(folder, ignore_errors=True)
    world.barrier()
    return ImageDir(folder, wanted.count), sample_images.fill(
        folder, subject.model, wanted, settings, world, options.batch_size
    )


def find_features(subject: EvalRun, options: Namespace, world: World) -> features.Extractor:
    data = recipe.open_data(subject.recipe, "train")
    return features.find(options.features, data, subject.autoencoder, subject.folder, world)


def chosen(model: LatentDiffusion, options: Namespace) -> SamplingConfig:
    """The run's own settings, but for those of the command line."""
    names = ("sampler", "steps", "guidance_scale")
    settings = replace(model.sampling, **{n: v for n in names if (v := getattr(options, n)) is not None})
    model.check(settings)
    return settings


def read_prompts(options: Namespace, model: LatentDiffusion) -> tuple[str, ...]:
    """The lines of --prompts-file; there are as many pictures, unless --count says otherwise."""
    if not options.prompts_file:
        return ()
    if model.tokenizer is None or len(model.conditioner.parts) > 1:
        raise UserError("--prompts-file is for runs that draw from text alone")
    try:
        lines = [line.strip() for line in Path(options.prompts_file).read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts-file {options.prompts_file} cannot be read: {error}") from error
    if not lines:
        raise UserError(f"--prompts-file {options.prompts_file} has no lines")
    return tuple(lines)
