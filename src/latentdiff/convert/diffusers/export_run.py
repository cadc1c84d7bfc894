"""A run -> a folder that diffusers loads with from_pretrained, as one of its pipelines if possible."""

from pathlib import Path

from torch import Tensor

from latentdiff import config, load
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import noise_schedule, text_encoder, unet2d, vae
from latentdiff.convert.diffusers.model_folder import RUN_RECIPE, RUN_WEIGHTS, VERSION, write_model
from latentdiff.convert.diffusers.target_pipeline import describe_call, pipeline_for
from latentdiff.convert.files import new_folder
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.files import write_json

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
    options, weights = unet2d.to_diffusers(model.unet, latent_size, _label_table(recipe, model))
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


def _label_table(recipe: DiffusionRecipe, model: LatentDiffusion) -> Tensor | None:
    """The class vectors of a Label condition with input=vector, which are a part of the U-Net in diffusers."""
    tables = [
        part.embedding.weight
        for part, condition in zip(model.conditioner.parts, recipe.conditions)
        if isinstance(condition, LabelConfig) and condition.input == "vector"
    ]
    return tables[0] if len(tables) == 1 else None


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
