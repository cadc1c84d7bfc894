"""A model or a pipeline in the format of diffusers -> a run."""

from pathlib import Path

import torch

from latentdiff import config, load
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.converted_run import ConvertedRun, factor_of, write_run
from latentdiff.convert.diffusers import components, unet2d, vae
from latentdiff.convert.diffusers.components import assemble_run
from latentdiff.convert.diffusers.model_folder import RUN_RECIPE, RUN_WEIGHTS, read_json
from latentdiff.convert.diffusers.noise_schedule import NoiseConfig
from latentdiff.data.degrade import DegradeConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir

TEXT_TO_IMAGE, SUPER_RESOLUTION = "LDMTextToImagePipeline", "LDMSuperResolutionPipeline"
PIPELINES = (TEXT_TO_IMAGE, SUPER_RESOLUTION, "LDMPipeline", "DDIMPipeline", "DDPMPipeline")


def import_folder(folder: str, *, output: str, autoencoder: str = "", vocab: str = "") -> None:
    """Convert a folder.

    Args:
        output: the run's folder.
        autoencoder: a stage-one run, for a U-Net without its autoencoder.
        vocab: vocab.txt, for a text encoder without its tokenizer.
    """
    src = Path(folder)
    if (src / RUN_RECIPE).is_file():
        run = _import_run(src)
    elif (src / "model_index.json").is_file():
        run = _import_pipeline(src)
    elif (src / "config.json").is_file():
        run = _import_model(src, autoencoder, vocab)
    else:
        raise UserError(f"{src} has no model_index.json or config.json; it must be a pipeline or a model of diffusers")
    write_run(Path(output), run)
    kind = "an autoencoder" if run.first_stage is None else "a diffusion run"
    count = sum(value.numel() for value in run.weights.values())
    print(f"wrote {output}: {kind} with {count:,} parameters, from {src}")


def _import_run(src: Path) -> ConvertedRun:
    """A run that was exported without a pipeline: its recipe and other weights are beside the models."""
    recipe = config.checked(config.from_dict(read_json(src / RUN_RECIPE), DiffusionRecipe), DiffusionRecipe, "")
    weights = {f"unet.{name}": value for name, value in components.read_unet(src / "unet").weights.items()}
    tokenizer = None
    for i, condition in enumerate(recipe.conditions):
        if isinstance(condition, TextConfig):
            _, values, tokenizer = components.read_text_encoder(src / "bert", src / "tokenizer")
            weights |= {f"conditioner.parts.{i}.{name}": value for name, value in values.items()}
    weights |= checkpoint.read_tensors(src / RUN_WEIGHTS)
    return ConvertedRun(recipe, weights, _read_first_stage(src), tokenizer)


def _read_first_stage(src: Path) -> ConvertedRun:
    return components.read_autoencoder(src / "vqvae") if (src / "vqvae").is_dir() else components.pixel_space()


def _import_pipeline(src: Path) -> ConvertedRun:
    kind = read_json(src / "model_index.json").get("_class_name")
    if kind not in PIPELINES:
        models = ", ".join(str(path.parent) for path in sorted(src.glob("*/config.json")))
        raise UserError(
            f"{src} is a {kind}; pipelines that can be imported are {', '.join(PIPELINES)}. Its models can be imported "
            f"one by one: {models or 'it has none'}"
        )
    unet, noise = components.read_unet(src / "unet"), components.read_scheduler(src / "scheduler")
    if kind == TEXT_TO_IMAGE:
        text, weights, tokenizer = components.read_text_encoder(src / "bert", src / "tokenizer")
        return assemble_run(unet, components.read_autoencoder(src / "vqvae"), noise, [(text, weights)], tokenizer)
    if kind == SUPER_RESOLUTION:
        first_stage = components.read_autoencoder(src / "vqvae", ignore_scale=True)
        degrade = DegradeConfig(scale=factor_of(first_stage.recipe.autoencoder), kind="bsr")
        return assemble_run(unet, first_stage, noise, [(LowResConfig(), {})], derived_fields=(degrade,))
    return assemble_run(unet, _read_first_stage(src), noise)


def _import_model(src: Path, autoencoder: str, vocab: str) -> ConvertedRun:
    options = read_json(src / "config.json")
    kind = options.get("_class_name") or options.get("model_type")
    if kind in vae.DEFAULTS:
        return components.read_autoencoder(src)
    if kind in (unet2d.CONDITION_MODEL, unet2d.MODEL):
        return _import_unet(src, autoencoder)
    if kind == "ldmbert":
        return _import_text_encoder(src, vocab)
    models = ", ".join([*vae.DEFAULTS, unet2d.CONDITION_MODEL, unet2d.MODEL, "LDMBertModel"])
    raise UserError(f"{src} is a {kind}; it must be one of {models}, or a pipeline: {', '.join(PIPELINES)}")


def _import_unet(src: Path, autoencoder: str) -> ConvertedRun:
    """A U-Net without its pipeline: over the latents of a stage-one run, or over pixels if it has three channels."""
    unet = components.read_unet(src)
    if autoencoder:
        folder = run_dir.find_run(autoencoder)
        first_stage = ConvertedRun(run_dir.read_recipe(folder, AutoencoderRecipe), load.weights_of(folder))
    elif unet.out_channels == 3:
        print("the U-Net has 3 channels and no autoencoder: assuming pixel space; otherwise add --autoencoder RUN")
        first_stage = components.pixel_space()
    else:
        print("WARNING: the U-Net has no autoencoder; an UNTRAINED one is used. Add --autoencoder RUN")
        first_stage = components.untrained_autoencoder(unet.out_channels)
    return assemble_run(unet, first_stage, components.read_scheduler(src.parent / "scheduler"))


def _import_text_encoder(src: Path, vocab: str) -> ConvertedRun:
    """A text encoder without its pipeline, with a small untrained U-Net: to initialize another run (init=)."""
    folder = src.parent / "tokenizer"
    text, weights, tokenizer = components.read_text_encoder(src, folder if folder.is_dir() else None, vocab)
    print("WARNING: only the text encoder is trained; U-Net and autoencoder are UNTRAINED. Use the run with init=")
    small = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(), num_heads=1, norm_groups=4)
    torch.manual_seed(0)
    unet = unet2d.ImportedUNet(small, UNet(small, 4, 4, text.dim).state_dict(), 4, 4, text.dim)
    first_stage = components.untrained_autoencoder(4)
    return assemble_run(unet, first_stage, NoiseConfig(), [(text, weights)], tokenizer)
