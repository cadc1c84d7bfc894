"""A run -> one file in the original release's format, and beside it the config for the release's code."""

import json
from pathlib import Path

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis import key_maps
from latentdiff.convert.compvis.key_maps import EMA, ema_name
from latentdiff.convert.compvis.model_config import write_model
from latentdiff.convert.converted_run import write_safetensors
from latentdiff.convert.key_map import Weights, to_src
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece
from latentdiff.load import weights_of
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir


def export_run(run_name: str, file: str) -> None:
    """Write the weights of a run to `file` (.safetensors) and the release's config beside it (.yaml)."""
    folder, path = run_dir.find_run(run_name), Path(file)
    if path.suffix != ".safetensors":
        raise UserError(f"the output is {path}; its name must end in .safetensors")
    recipe = run_dir.read_recipe(folder, AutoencoderRecipe, DiffusionRecipe)
    finished = (folder / "model.safetensors").exists()
    metadata = checkpoint.read_metadata(folder / "model.safetensors") if finished else {}
    if isinstance(recipe, AutoencoderRecipe):
        config, state = write_model(recipe, recipe), dict(weights_of(folder))
        if _pop_scale(state) != 1:
            print("the scale of the latents is not exported: the release has it in the diffusion model (scale_factor)")
    else:
        first_stage = run_dir.read_recipe(folder / "autoencoder", AutoencoderRecipe)
        config = write_model(recipe, first_stage)
        state = diffusion_state(folder, recipe, first_stage, metadata, config["model"]["params"])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, state, {name: text for name, text in metadata.items() if name.startswith("modelspec.")})
    path.with_suffix(".yaml").write_text(json.dumps(config, indent=2) + "\n")  # YAML is a superset of JSON
    print(f"wrote {path} ({len(state)} tensors) and {path.with_suffix('.yaml')}")


def diffusion_state(
    folder: Path, recipe: DiffusionRecipe, first_stage: AutoencoderRecipe, metadata: dict[str, str], params: dict
) -> Weights:
    """The tensors of a diffusion run as in a checkpoint; settings that depend on them are added to `params`."""
    weights, autoencoder = weights_of(folder), dict(weights_of(folder / "autoencoder"))
    tokenizer = CaptionTokenizer(wordpiece(SPECIALS), 3)  # a stand-in: the weights do not depend on it
    with torch.device("meta"):
        model = build_diffusion(recipe, Autoencoder(first_stage.autoencoder), tokenizer)
    new_attention_order = metadata.get("compvis.new_attention_order") == "true"
    params["unet_config"]["params"] |= {"use_new_attention_order": True} if new_attention_order else {}
    state = to_src(weights, key_maps.model_key_map(model, new_attention_order))
    state |= key_maps.label_table(weights) | key_maps.unused_head(state)
    if recipe.train.ema_decay > 0:
        state |= {ema_name(name): value for name, value in state.items() if name.startswith(key_maps.UNET)}
        state[f"{EMA}decay"] = torch.tensor(recipe.train.ema_decay)
        state[f"{EMA}num_updates"] = torch.tensor(int(metadata.get("latentdiff.step", 0)), dtype=torch.int32)
    scale, prefixes = _pop_scale(autoencoder), [key_maps.FIRST_STAGE]
    if any(isinstance(c, MaskedConfig) for c in recipe.conditions):
        prefixes.append(key_maps.CONDITION)  # one module under two names
        if scale != 1:
            raise UserError(f"latent_scale is {scale:g}; it must be 1 for inpainting in the original release")
    state |= key_maps.schedule_buffers(model.schedule)
    state |= {prefix + name: value for prefix in prefixes for name, value in autoencoder.items()}
    if scale == 1 or metadata.get("compvis.scale_factor", "buffer") != "buffer":
        params["scale_factor"] = scale
        return state
    params["scale_by_std"] = True
    return state | {"scale_factor": torch.tensor(scale)}


def _pop_scale(weights: Weights) -> float:
    """Remove the normalization from the weights of an autoencoder; the release has one number, and no shift."""
    shift, scale = weights.pop("latent_shift"), weights.pop("latent_scale")
    if shift.count_nonzero() or (scale != scale.flatten()[0]).any():
        raise UserError(
            "the latents are normalized per channel, but the original release has one number for all channels; train "
            "with latent_norm=scalar, or autoencoder.latent_stats=run"
        )
    return float(str(scale.flatten()[0].numpy()))  # 0.18215, as it was before it was rounded to float32
