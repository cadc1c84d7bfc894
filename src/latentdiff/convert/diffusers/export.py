"""diffusers-export: a run -> a folder that diffusers loads with from_pretrained, as one pipeline where it can."""

from pathlib import Path

from torch import Tensor

from latentdiff import config, load
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers import noise_schedule, text_encoder, unet2d, vae
from latentdiff.convert.diffusers.pipelines import how_to_draw, pipeline_for
from latentdiff.convert.native import new_folder
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint
from latentdiff.training import run_dir as runs

Index = dict[str, list[str]]  # part of a pipeline -> the library and the class that it is of


def export_run(run: str, output: str) -> None:
    """An autoencoder as one model; a diffusion run as a folder of models, which may be a pipeline."""
    folder, path = runs.find_run(run), Path(output)
    recipe, model = runs.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe), load.load_run(folder)
    with new_folder(path) as aside:
        if isinstance(model, Autoencoder):
            lines = [_write_autoencoder(aside, model, min(recipe.data.image_size), vae.STATISTICS)[1]]
        else:
            lines = _write_diffusion(aside, recipe, model)
    print("\n".join([f"{path}:", *(f"  {line}" for line in lines)]))


def _write_diffusion(folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion) -> list[str]:
    """Every part in its folder, and the pipeline's index, or why there is none; a line for each."""
    pipeline = pipeline_for(recipe, model)
    size = tuple(side // model.autoencoder.factor for side in model.size)
    options, weights = unet2d.to_theirs(model.unet, size, _class_vectors(recipe, model))
    folders.write(folder / "unet", options, weights)
    index = {"unet": ["diffusers", options["_class_name"]]}
    if model.autoencoder.config.channel_mult:
        index["vqvae"] = _write_autoencoder(folder / "vqvae", model.autoencoder, min(model.size), pipeline.reads)
    index |= _write_text(folder, recipe, model) | _write_scheduler(folder, recipe, pipeline.against)
    lines = [f"{part}: {kind}" for part, (_, kind) in index.items()]
    if pipeline.against or not noise_schedule.has_name(recipe.schedule):
        _write_rest(folder, recipe, model)
    if pipeline.against:
        return [*lines, *(f"no {pipeline.kind or 'pipeline'}: {reason}" for reason in pipeline.against)]
    named = {"_class_name": pipeline.kind, "_diffusers_version": folders.VERSION}
    checkpoint.write_json(folder / "model_index.json", named | index)
    return lines + how_to_draw(pipeline.kind, recipe.sampling, recipe.schedule.timesteps)


def _class_vectors(recipe: DiffusionRecipe, model: LatentDiffusion) -> Tensor | None:
    """The table of a label that is added to the time embedding, which diffusers' U-Net holds itself."""
    parts = [
        part
        for part, condition in zip(model.conditioner.parts, recipe.conditions)
        if isinstance(condition, LabelConfig) and condition.input == "vector"
    ]
    return parts[0].embedding.weight if len(parts) == 1 else None


def _write_autoencoder(folder: Path, model: Autoencoder, size: int, reads: tuple[str, ...]) -> list[str]:
    options, weights = vae.to_theirs(model, size, reads)
    folders.write(folder, options, weights)
    return ["diffusers", options["_class_name"]]


def _write_text(folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion) -> Index:
    i = next((i for i, condition in enumerate(recipe.conditions) if isinstance(condition, TextConfig)), None)
    if i is None:
        return {}
    weights = model.conditioner.parts[i].state_dict()
    options, weights = text_encoder.to_theirs(recipe.conditions[i], weights, model.tokenizer.pad_id)
    folders.write(folder / "bert", options, weights, stem="model")
    kind = text_encoder.write_tokenizer(folder / "tokenizer", model.tokenizer)
    return {"bert": ["latent_diffusion", "LDMBertModel"], "tokenizer": ["transformers", kind]}


def _write_scheduler(folder: Path, recipe: DiffusionRecipe, against: list[str]) -> Index:
    try:
        options = noise_schedule.to_theirs(
            recipe.schedule, recipe.objective.prediction, recipe.sampling.timestep_spacing
        )
    except UserError as error:
        against.append(str(error))
        return {}
    folders.write(folder / "scheduler", options, None)
    return {"scheduler": ["diffusers", options["_class_name"]]}


def _write_rest(folder: Path, recipe: DiffusionRecipe, model: LatentDiffusion) -> None:
    """What diffusers' models do not hold, so that the folder becomes the same run again."""
    checkpoint.write_json(folder / folders.OWN, config.to_dict(recipe))
    texts = [f"conditioner.parts.{i}." for i, c in enumerate(recipe.conditions) if isinstance(c, TextConfig)]
    told = (*texts, "unet.", "autoencoder.")
    state = model.state_dict().items()
    kept = {name: x for name, x in state if name.startswith("unet.vector.") or not name.startswith(told)}
    checkpoint.write_tensors(folder / folders.REST, kept)
