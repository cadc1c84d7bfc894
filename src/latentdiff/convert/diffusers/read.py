"""The parts of a pipeline, each from its own folder, as parts of a run."""

from dataclasses import replace
from pathlib import Path

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.precomputed import PrecomputedConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers import noise_schedule, text_encoder, unet2d, vae
from latentdiff.convert.diffusers.folder import Weights
from latentdiff.convert.native import Native
from latentdiff.data.folder import FolderConfig
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, load_tokenizer, wordpiece
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.recipe import AutoencoderRecipe, Condition, DiffusionRecipe

Conditions = list[tuple[Condition, Weights]]
PIXELS = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())
STAND_IN = AutoencoderConfig(
    channels=8, channel_mult=(1, 1, 1, 1), num_res_blocks=1, mid_attention=False, norm_groups=4
)


def autoencoder(source: Path, ignore_scale: bool = False) -> Native:
    """The first stage of a folder; `ignore_scale`: as its pipeline does, which takes the latents as they are."""
    options = folders.read_json(source / "config.json")
    if ignore_scale:
        options["scaling_factor"] = 1.0
    elif "scaling_factor" not in options:
        default = vae.SHARED["scaling_factor"]
        print(f"{source / 'config.json'} has no scaling_factor; {default} is taken, as diffusers does")
    made = vae.from_theirs(options, folders.read_weights(source))
    return _first_stage(made.config, made.weights, made.size)


def pixels() -> Native:
    return _first_stage(PIXELS, Autoencoder(PIXELS).state_dict(), 256)


def stand_in(z_channels: int) -> Native:
    """The smallest of autoencoders, untrained, where none came along."""
    made = replace(STAND_IN, z_channels=z_channels)
    torch.manual_seed(0)
    return _first_stage(made, Autoencoder(made).state_dict(), 256)


def _first_stage(made: AutoencoderConfig, weights: Weights, size: int) -> Native:
    recipe = AutoencoderRecipe(data=FolderConfig(path="", size=size), autoencoder=made, discriminator=None)
    return Native(recipe, weights)


def unet(source: Path) -> unet2d.Imported:
    return unet2d.from_theirs(folders.read_json(source / "config.json"), folders.read_weights(source))


def text(source: Path, tokenizers: Path | None, vocab: str = "") -> tuple[TextConfig, Weights, CaptionTokenizer]:
    """The text encoder, and its tokenizer from a folder or a vocab.txt."""
    options = folders.read_json(source / "config.json")
    made, weights = text_encoder.from_theirs(options, folders.read_weights(source))
    if vocab or tokenizers:
        loaded = load_tokenizer(vocab) if vocab else text_encoder.read_tokenizer(tokenizers)
    else:
        print("WARNING: the text encoder has no tokenizer; prompts mean NOTHING to it. --vocab vocab.txt gives it one")
        numbers = [f"[unused{i}]" for i in range(len(SPECIALS), made.vocab_size)]
        loaded = wordpiece([*SPECIALS, *numbers])
    tokenizer = CaptionTokenizer(loaded, made.length)
    if tokenizer.vocab_size > made.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, and the text encoder knows {made.vocab_size}"
        )
    return made, weights | {"empty": tokenizer.empty}, tokenizer


def scheduler(source: Path) -> tuple[ScheduleConfig, str, str]:
    """Schedule, prediction and spacing; where there is no scheduler, those of Stable Diffusion 1, which are ours."""
    path = source / "scheduler_config.json"
    if not path.is_file():
        print(f"there is no {path}: the noise schedule is taken to be that of Stable Diffusion 1, with prediction eps")
        return ScheduleConfig(), "eps", "trailing"
    schedule, prediction, spacing, notes = noise_schedule.from_theirs(folders.read_json(path))
    if notes:
        print(f"drawing here differs from diffusers' in what {path} says of it: {', '.join(notes)}")
    return schedule, prediction, spacing


def doors(made: unet2d.Imported, conditions: Conditions) -> Conditions:
    """The conditions, and one for what else goes into the U-Net."""
    text = next((condition for condition, _ in conditions if isinstance(condition, TextConfig)), None)
    extra = (
        made.in_channels
        - made.out_channels
        - 3 * any(isinstance(condition, LowResConfig) for condition, _ in conditions)
    )
    if text is not None and text.dim != made.context_dim:
        raise UserError(
            f"the text encoder has d_model={text.dim}, but the U-Net cross_attention_dim={made.context_dim}"
        )
    if extra < 0:
        raise UserError(
            f"the U-Net has in_channels={made.in_channels} and out_channels={made.out_channels}, which leaves no "
            f"channels for its condition"
        )
    if made.context_dim and text is None:
        conditions = [*conditions, (PrecomputedConfig("context", made.context_dim), {})]
    if extra:
        conditions = [*conditions, (PrecomputedConfig("concat", extra), {})]
    if made.table is not None:
        label = LabelConfig(classes=len(made.table), dim=made.vector_dim, dropout=0.0, input="vector")
        return [*conditions, (label, {"embedding.weight": made.table})]
    return [*conditions, (PrecomputedConfig("vector", made.vector_dim), {})] if made.vector_dim else conditions


def assemble(
    made: unet2d.Imported, first_stage: Native, conditions: Conditions, noise: tuple[ScheduleConfig, str, str],
    tokenizer: CaptionTokenizer | None = None, **others: object,
) -> Native:  # fmt: skip
    """A diffusion run of its parts; noise: what `scheduler` gave."""
    z_channels, factor = first_stage.recipe.autoencoder.z_channels, factor_of(first_stage)
    if z_channels != made.out_channels:
        raise UserError(
            f"the U-Net has out_channels={made.out_channels}, and the autoencoder's latents have {z_channels}"
        )
    height, width = (side * factor for side in made.size or (32, 32))
    schedule, prediction, spacing = noise
    guided = any(getattr(condition, "dropout", 0) > 0 for condition, _ in conditions)
    recipe = DiffusionRecipe(
        data=FolderConfig(path="", size=height, width=width if width != height else 0),
        conditions=tuple(condition for condition, _ in conditions),
        unet=made.config,
        schedule=schedule,
        objective=ObjectiveConfig(prediction=prediction),
        sampling=SamplingConfig("ddim", steps=50, guidance_scale=5.0 if guided else 1.0, timestep_spacing=spacing),
        **others,
    )
    weights = {f"unet.{name}": value for name, value in made.weights.items()}
    for i, (_, values) in enumerate(conditions):
        weights |= {f"conditioner.parts.{i}.{name}": value for name, value in values.items()}
    return Native(recipe, weights, first_stage, tokenizer)


def factor_of(first_stage: Native) -> int:
    """Pixels per place of the latent, in each direction."""
    return 2 ** max(0, len(first_stage.recipe.autoencoder.channel_mult) - 1)
