"""diffusers-import: a model, or a pipeline of models, as diffusers saves it -> a run."""

from pathlib import Path

import torch

from latentdiff import config, load
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers import read, unet2d, vae
from latentdiff.convert.native import Native, write_run
from latentdiff.data.degrade import DegradeConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir


def import_folder(folder: str, *, output: str, autoencoder: str = "", vocab: str = "") -> None:
    """autoencoder: a stage-one run, for a U-Net that comes alone; vocab: a vocab.txt, for a text encoder that does."""
    source = Path(folder)
    if (source / folders.OWN).is_file():
        made = _own(source)
    elif (source / "model_index.json").is_file():
        made = _pipeline(source)
    elif (source / "config.json").is_file():
        made = _model(source, autoencoder, vocab)
    else:
        raise UserError(f"{source} is no folder of diffusers: it has neither model_index.json nor config.json")
    write_run(Path(output), made)
    kind = "an autoencoder" if made.first_stage is None else "a diffusion run"
    print(f"{output}: {kind} of {sum(value.numel() for value in made.weights.values()):,} numbers, from {source}")


def _model(source: Path, autoencoder: str, vocab: str) -> Native:
    """One model."""
    options = folders.read_json(source / "config.json")
    kind = options.get("_class_name") or options.get("model_type")
    if kind in vae.READ:
        return read.autoencoder(source)
    if kind in (unet2d.TEXT, unet2d.PLAIN):
        return _unet_alone(source, autoencoder)
    if kind == "ldmbert":
        return _text_alone(source, vocab)
    known = ", ".join([*vae.READ, unet2d.TEXT, unet2d.PLAIN, "LDMBertModel"])
    raise UserError(
        f"{source} holds a model of the kind {kind}; known are {known}, and the pipelines {', '.join(PIPELINES)}"
    )


def _unet_alone(source: Path, autoencoder: str) -> Native:
    """A U-Net over the autoencoder of a stage-one run, else over pixels if it has three channels."""
    unet = read.unet(source)
    if autoencoder:
        folder = run_dir.find_run(autoencoder)
        first_stage = Native(run_dir.read_recipe(folder, AutoencoderRecipe), load.weights_of(folder))
    elif unet.out_channels == 3:
        print("the U-Net comes alone and has 3 channels: it is taken to work on pixels; --autoencoder RUN gives it one")
        first_stage = read.pixels()
    else:
        print("WARNING: the U-Net comes alone; its autoencoder is UNTRAINED. --autoencoder RUN gives it one")
        first_stage = read.stand_in(unet.out_channels)
    scheduler = read.scheduler(source.parent / "scheduler")
    return read.assemble(unet, first_stage, read.doors(unet, []), scheduler)


def _text_alone(source: Path, vocab: str) -> Native:
    """A text encoder with the smallest of U-Nets, which knows nothing: a run to start another from (init=)."""
    beside = source.parent / "tokenizer"
    text, weights, tokenizer = read.text(source, beside if beside.is_dir() else None, vocab)
    print("WARNING: the text encoder comes alone; all else is UNTRAINED. Another run starts from it with init=")
    small = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(), num_heads=1, norm_groups=4)
    torch.manual_seed(0)
    unet = unet2d.Imported(
        small, UNet(small, 4, 4, text.dim).state_dict(), 4, 4, text.dim, vector_dim=0, table=None, size=None
    )
    noise = ScheduleConfig(), "eps", "trailing"
    return read.assemble(unet, read.stand_in(4), [(text, weights)], noise, tokenizer)


# ---- pipelines


def _text_to_image(source: Path) -> Native:
    text, weights, tokenizer = read.text(source / "bert", source / "tokenizer")
    unet, scheduler = read.unet(source / "unet"), read.scheduler(source / "scheduler")
    conditions = read.doors(unet, [(text, weights)])
    return read.assemble(unet, read.autoencoder(source / "vqvae"), conditions, scheduler, tokenizer)


def _superresolution(source: Path) -> Native:
    unet, scheduler = read.unet(source / "unet"), read.scheduler(source / "scheduler")
    first_stage = read.autoencoder(source / "vqvae", ignore_scale=True)
    made = (DegradeConfig(scale=read.factor_of(first_stage), kind="bsr"),)
    return read.assemble(unet, first_stage, read.doors(unet, [(LowResConfig(), {})]), scheduler, fields=made)


def _unconditional(source: Path) -> Native:
    unet, scheduler = read.unet(source / "unet"), read.scheduler(source / "scheduler")
    pixels = not (source / "vqvae").is_dir()
    first_stage = read.pixels() if pixels else read.autoencoder(source / "vqvae")
    return read.assemble(unet, first_stage, read.doors(unet, []), scheduler)


PIPELINES = {
    "LDMTextToImagePipeline": _text_to_image,
    "LDMSuperResolutionPipeline": _superresolution,
    "LDMPipeline": _unconditional,
    "DDIMPipeline": _unconditional,
    "DDPMPipeline": _unconditional,
}


def _pipeline(source: Path) -> Native:
    kind = folders.read_json(source / "model_index.json").get("_class_name")
    if kind not in PIPELINES:
        parts = ", ".join(str(path.parent) for path in sorted(source.glob("*/config.json")))
        raise UserError(
            f"{source} is a {kind}; pipelines that can be imported whole are {', '.join(PIPELINES)}. Its parts may be "
            f"imported one by one: {parts or 'it has none'}"
        )
    return PIPELINES[kind](source)


def _own(source: Path) -> Native:
    """A run that was exported without a pipeline: its recipe is beside the models, and what they do not hold."""
    data = folders.read_json(source / folders.OWN)
    recipe = config.checked(config.from_dict(data, DiffusionRecipe), DiffusionRecipe, "")
    unet = read.unet(source / "unet")
    pixels = not (source / "vqvae").is_dir()
    first_stage = read.pixels() if pixels else read.autoencoder(source / "vqvae")
    weights, tokenizer = {f"unet.{name}": value for name, value in unet.weights.items()}, None
    for i, condition in enumerate(recipe.conditions):
        if isinstance(condition, TextConfig):
            _, values, tokenizer = read.text(source / "bert", source / "tokenizer")
            weights |= {f"conditioner.parts.{i}.{name}": value for name, value in values.items()}
    return Native(recipe, weights | checkpoint.read_tensors(source / folders.REST), first_stage, tokenizer)
