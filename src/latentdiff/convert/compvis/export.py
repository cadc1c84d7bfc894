"""A run -> one file in the original release's layout, and beside it the config that the release's code reads."""

import json
from pathlib import Path

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import UserError
from latentdiff.convert import stream
from latentdiff.convert.compvis.key_map import (
    AVERAGE,
    CONDITION,
    FIRST_STAGE,
    UNET,
    Weights,
    average_name,
    model_places,
    schedule_buffers,
    unused_head,
    vector_table,
)
from latentdiff.convert.compvis.yaml_config import config_of
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.load import weights_of
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir

TOKENIZER = CaptionTokenizer(wordpiece(SPECIALS), 3)  # of its words the weights know nothing


def export_run(run_name: str, file: str) -> None:
    """The run's weights as `file` (.safetensors), with the release's config beside it (.yaml)."""
    folder, path = run_dir.find_run(run_name), Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"{path} must end in .safetensors")
    recipe = run_dir.read_recipe(folder, AutoencoderRecipe, DiffusionRecipe)
    facts = checkpoint.read_metadata(folder / "model.safetensors") if (folder / "model.safetensors").exists() else {}
    alone = isinstance(recipe, AutoencoderRecipe)
    first_stage = recipe if alone else run_dir.read_recipe(folder / "autoencoder", AutoencoderRecipe)
    config = config_of(recipe, first_stage)  # refuses what cannot be said
    state = dict(weights_of(folder)) if alone else whole(folder, recipe, first_stage, facts, config["model"]["params"])
    if alone and _statistics(state) != 1:
        print("the latents' scale is left out: the release keeps it with the diffusion model (scale_factor)")
    path.parent.mkdir(parents=True, exist_ok=True)
    stream.write(path, state, {name: text for name, text in facts.items() if name.startswith("modelspec.")})
    path.with_suffix(".yaml").write_text(json.dumps(config, indent=2) + "\n")  # JSON is YAML too
    print(f"done: {path} ({len(state)} tensors), {path.with_suffix('.yaml')}")


def whole(
    folder: Path, recipe: DiffusionRecipe, first_stage: AutoencoderRecipe, facts: dict[str, str], params: dict
) -> Weights:
    """A diffusion run's tensors as in a checkpoint; what they decide is added to the config's `params`."""
    ours, one = weights_of(folder), dict(weights_of(folder / "autoencoder"))
    with torch.device("meta"):
        model = build_diffusion(recipe, Autoencoder(first_stage.autoencoder), TOKENIZER)
    new_order = facts.get("compvis.new_attention_order") == "true"
    params["unet_config"]["params"] |= {"use_new_attention_order": True} if new_order else {}
    state = {place.name: place.to_theirs(ours[name]) for name, place in model_places(model, new_order).items()}
    state |= vector_table(ours) | unused_head(state)
    if recipe.train.ema_decay > 0:
        state |= {average_name(name): value for name, value in state.items() if name.startswith(UNET)}
        updates = int(facts.get("latentdiff.step", 0))
        state[f"{AVERAGE}decay"] = torch.tensor(recipe.train.ema_decay)
        state[f"{AVERAGE}num_updates"] = torch.tensor(updates, dtype=torch.int32)
    scale, masked = _statistics(one), any(isinstance(c, MaskedConfig) for c in recipe.conditions)
    if masked and scale != 1:
        raise UserError(f"the latents are scaled by {scale:g}, which the original release's inpainting does not know")
    state |= schedule_buffers(model.schedule) | {FIRST_STAGE + name: value for name, value in one.items()}
    if masked:  # one module under two names
        state |= {CONDITION + name: value for name, value in one.items()}
    buffered = facts.get("compvis.scale_factor", "buffer") == "buffer" and scale != 1
    params |= {"scale_by_std": True} if buffered else {"scale_factor": scale}
    return state | ({"scale_factor": torch.tensor(scale)} if buffered else {})


def _statistics(weights: Weights) -> float:
    """Take the statistics out of an autoencoder's weights; the release holds one number, and no shift."""
    shift, scale = weights.pop("latent_shift"), weights.pop("latent_scale")
    if shift.count_nonzero() or (scale != scale.flatten()[0]).any():
        raise UserError(
            "the latents are normalised per channel, and the original release has one number for all; "
            "train with statistics=scalar, or autoencoder.latent_stats=run"
        )
    return float(str(scale.flatten()[0].numpy()))  # 0.18215, as it was before it was rounded to float32
