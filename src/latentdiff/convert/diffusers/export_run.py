"""A run -> a folder that diffusers loads with from_pretrained: a pipeline that samples the same images, or models."""

from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from latentdiff import config, load
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.label import LabelCondition
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError, short_name
from latentdiff.convert.converted_run import new_folder
from latentdiff.convert.diffusers import noise_schedule, text_encoder, unet2d, vae
from latentdiff.convert.diffusers.model_folder import RUN_RECIPE, RUN_WEIGHTS, VERSION, write_model
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.files import write_json

EXPRESSIBLE = ("sampler", "steps", "guidance_scale", "eta", "timestep_spacing")  # in a call or by the scheduler
FACTOR = 8  # pixels per latent position in LDMTextToImagePipeline
Index = dict[str, list[str]]  # component of a pipeline -> its library and class


def export_run(run: str, output: str) -> None:
    """Write an autoencoder as one model, and a diffusion run as a pipeline or a folder of models."""
    folder, path = run_dir.find_run(run), Path(output)
    recipe = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    with new_folder(path) as tmp:
        if isinstance(recipe, AutoencoderRecipe):
            size = min(recipe.data.image_size)
            lines = [_write_autoencoder(tmp, load.load_autoencoder(folder), size, vae.LATENT_STATS)[1]]
        else:
            model, autoencoder, _ = load.load_diffusion(folder)
            lines = write_diffusion(tmp, recipe, model, autoencoder)
    print("\n".join([f"wrote {path}:", *(f"  {line}" for line in lines)]))


def write_diffusion(
    folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion, autoencoder: Autoencoder
) -> list[str]:
    """Write every component in its folder, and model_index.json if there is a pipeline; returns lines of a report."""
    pipeline = pipeline_for(recipe, model, autoencoder)
    image_size = recipe.data.image_size
    latent_size = tuple(side // autoencoder.factor for side in image_size)
    options, weights = unet2d.to_diffusers(model.unet, latent_size, _label_table(model))
    write_model(folder / "unet", options, weights)
    index = {"unet": ["diffusers", options["_class_name"]]}
    if autoencoder.config.channel_mult:
        index["vqvae"] = _write_autoencoder(folder / "vqvae", autoencoder, min(image_size), pipeline.stats)
    index |= _write_text_encoder(folder, recipe, model) | _write_scheduler(folder, recipe, pipeline.problems)
    lines = [f"{component}: {kind}" for component, (_, kind) in index.items()]
    if pipeline.problems or not noise_schedule.has_name(recipe.schedule):
        _write_remainder(folder, recipe, model)
    if pipeline.problems:
        return [*lines, *(f"no {pipeline.name or 'pipeline'}: {problem}" for problem in pipeline.problems)]
    write_json(folder / "model_index.json", {"_class_name": pipeline.name, "_diffusers_version": VERSION} | index)
    return lines + describe_call(pipeline.name, recipe.sampling, recipe.schedule.timesteps)


def _label_table(model: LatentDiffusion) -> Tensor | None:
    """The class vectors of a Label condition with input=vector, which are a part of the U-Net in diffusers."""
    labels = [part for part in model.conditioner.parts if isinstance(part, LabelCondition) and part.vector_dim]
    return labels[0].embedding.weight if len(labels) == 1 else None


def _write_autoencoder(folder: Path, model: Autoencoder, size: int, stats: tuple[str, ...]) -> list[str]:
    options, weights = vae.to_diffusers(model, size, stats)
    write_model(folder, options, weights)
    return ["diffusers", options["_class_name"]]


def _write_text_encoder(folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion) -> Index:
    for part, condition in zip(model.conditioner.parts, recipe.conditions):
        if isinstance(condition, TextConfig):
            options, weights = text_encoder.to_diffusers(condition, part.state_dict(), part.tokenizer.pad_id)
            write_model(folder / "bert", options, weights, stem="model")
            kind = text_encoder.write_tokenizer(folder / "tokenizer", part.tokenizer)
            return {"bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", kind]}
    return {}


def _write_scheduler(folder: Path, recipe: DiffusionRecipe, problems: list[str]) -> Index:
    """Write the scheduler; if there is none, the reason is appended to `problems`."""
    prediction, spacing = recipe.objective.prediction, recipe.sampling.timestep_spacing
    try:
        options = noise_schedule.to_diffusers(recipe.schedule, prediction, spacing)
    except UserError as error:
        problems.append(str(error))
        return {}
    write_model(folder / "scheduler", options, None)
    return {"scheduler": ["diffusers", options["_class_name"]]}


def _write_remainder(folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion) -> None:
    """Write what the models of diffusers do not contain, so that an import gives the same run."""
    write_json(folder / RUN_RECIPE, config.to_dict(recipe))
    texts = [f"conditioner.parts.{i}." for i, c in enumerate(recipe.conditions) if isinstance(c, TextConfig)]
    exported = (*texts, "unet.")
    state = model.state_dict().items()
    weights = {name: x for name, x in state if name.startswith("unet.vector.") or not name.startswith(exported)}
    checkpoint.write_tensors(folder / RUN_WEIGHTS, weights)


class TargetPipeline(NamedTuple):
    """The pipeline that samples the same images as a run."""

    name: str  # its class; "": there is none
    stats: tuple[str, ...]  # options for the normalization of the latents that it reads
    problems: list[str]  # why it cannot express the run


def pipeline_for(recipe: DiffusionRecipe, model: LatentDiffusion, autoencoder: Autoencoder) -> TargetPipeline:
    """The pipeline for the conditions of a run."""
    conditions, (height, width) = [type(condition) for condition in recipe.conditions], recipe.data.image_size
    square = [f"the images are {width}x{height}, but its images are square"] if height != width else []
    if conditions == [TextConfig]:
        problems = _text_problems(recipe.conditions[0], model, autoencoder) + square
        return TargetPipeline("LDMTextToImagePipeline", ("scaling_factor",), problems)
    if conditions == [LowResConfig]:
        return TargetPipeline("LDMSuperResolutionPipeline", (), _low_res_problems(model, autoencoder))
    if conditions:
        names = ", ".join(map(short_name, conditions))
        return TargetPipeline("", vae.LATENT_STATS, [f"diffusers has none for conditions={names}"])
    if autoencoder.config.channel_mult:
        return TargetPipeline("LDMPipeline", ("scaling_factor",), square)
    normalized = bool((autoencoder.latent_shift != 0).any() or (autoencoder.latent_scale != 1).any())
    return TargetPipeline("DDIMPipeline", (), ["the pixels are normalized; its pixels are in [-1, 1]"] * normalized)


def _text_problems(text: TextConfig, model: LatentDiffusion, autoencoder: Autoencoder) -> list[str]:
    length, factor = text_encoder.LENGTH, autoencoder.factor
    problems = {
        "conditions.0.mask_padding is true; it must be false": text.mask_padding,
        f"conditions.0.max_length is {text.max_length}; it must be {length}": text.max_length != length,
        f"the autoencoder has factor {factor}; it must be {FACTOR}": factor != FACTOR,
        "the tokenizer is not BERT's": text_encoder.bert_vocabulary(model.conditioner.tokenizer) is None,
    }
    return [problem for problem, holds in problems.items() if holds]


def _low_res_problems(model: LatentDiffusion, autoencoder: Autoencoder) -> list[str]:
    ratio, channels = model.conditioner.parts[0].ratio, autoencoder.z_channels
    problems = {
        f"the latent has {ratio:g} times the size of low_res; it must have the same": ratio != 1,
        f"the latent has {channels} channels; it must have 3, like low_res": channels != 3,
        "the run is in pixel space; it must have an autoencoder": not autoencoder.config.channel_mult,
    }
    return [problem for problem, holds in problems.items() if holds]


def describe_call(pipeline: str, s: SamplingConfig, timesteps: int) -> list[str]:
    """The call that samples with the settings of the run, and which of them the pipeline does not follow."""
    call = f"num_inference_steps={s.steps}, eta={s.eta:g}"
    if pipeline == "LDMTextToImagePipeline":
        call = f"[prompt], {call}, guidance_scale={s.guidance_scale:g}"
    if pipeline == "LDMSuperResolutionPipeline":
        call = f"image, {call}"
    spacing = s.timestep_spacing
    different = {
        f"sampler={s.sampler} (the pipeline has ddim)": s.sampler != "ddim",
        f"timestep_spacing={spacing} (the pipeline has trailing)": spacing not in noise_schedule.SPACINGS,
        f"steps={s.steps}, which does not divide the {timesteps} timesteps": timesteps % s.steps != 0,
    }
    others = [f for f in fields(s) if f.name not in EXPRESSIBLE]
    different |= {f"{f.name}={getattr(s, f.name)}": getattr(s, f.name) != f.default for f in others}
    return [f"{pipeline}: pipeline({call})", *(f"sample.py differs in {x}" for x, holds in different.items() if holds)]
