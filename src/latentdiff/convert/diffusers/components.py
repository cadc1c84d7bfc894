"""The components of a pipeline, each read from its own folder, and a run assembled of them."""

from pathlib import Path

import torch

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.precomputed import PrecomputedConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.converted_run import PIXEL_SPACE, ConvertedRun, factor_of
from latentdiff.convert.diffusers import noise_schedule, text_encoder, unet2d, vae
from latentdiff.convert.diffusers.model_folder import read_json, read_weights
from latentdiff.convert.diffusers.noise_schedule import NoiseConfig
from latentdiff.convert.diffusers.unet2d import ImportedUNet
from latentdiff.convert.key_map import Weights
from latentdiff.data.folder import FolderConfig
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, load_tokenizer, wordpiece
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.recipe import AutoencoderRecipe, Condition, DiffusionRecipe

Conditions = list[tuple[Condition, Weights]]


# ---- autoencoders


def read_autoencoder(folder: Path, ignore_scale: bool = False) -> ConvertedRun:
    """ignore_scale: do not scale the latents, as in LDMSuperResolutionPipeline."""
    options = read_json(folder / "config.json")
    if ignore_scale:
        options["scaling_factor"] = 1.0
    elif "scaling_factor" not in options:
        default = vae.SHARED["scaling_factor"]
        print(f"{folder / 'config.json'} has no scaling_factor; using {default}, the default of diffusers")
    return _first_stage(*vae.from_diffusers(options, read_weights(folder)))


def pixel_space() -> ConvertedRun:
    return _first_stage(PIXEL_SPACE, Autoencoder(PIXEL_SPACE).state_dict())


def untrained_autoencoder(z_channels: int) -> ConvertedRun:
    """A small autoencoder with random weights, for a U-Net without its autoencoder."""
    mults = (1, 1, 1, 1)
    config = AutoencoderConfig(8, mults, num_res_blocks=1, mid_attention=False, z_channels=z_channels, norm_groups=4)
    torch.manual_seed(0)
    return _first_stage(config, Autoencoder(config).state_dict())


def _first_stage(config: AutoencoderConfig, weights: Weights, size: int = 256) -> ConvertedRun:
    recipe = AutoencoderRecipe(data=FolderConfig(path="", size=size), autoencoder=config, discriminator=None)
    return ConvertedRun(recipe, weights)


# ---- the other components


def read_unet(folder: Path) -> ImportedUNet:
    return unet2d.from_diffusers(read_json(folder / "config.json"), read_weights(folder))


def read_text_encoder(
    folder: Path, tokenizer_folder: Path | None, vocab: str = ""
) -> tuple[TextConfig, Weights, CaptionTokenizer]:
    """The text encoder, and its tokenizer from `vocab` (a vocab.txt) or from a folder."""
    text, weights = text_encoder.from_diffusers(read_json(folder / "config.json"), read_weights(folder))
    if vocab or tokenizer_folder:
        loaded = load_tokenizer(vocab) if vocab else text_encoder.read_tokenizer(tokenizer_folder)
    else:
        print("WARNING: the text encoder has NO tokenizer: prompts have no effect. Add --vocab vocab.txt")
        loaded = wordpiece([*SPECIALS, *(f"[unused{i}]" for i in range(len(SPECIALS), text.vocab_size))])
    tokenizer = CaptionTokenizer(loaded, text.max_length)
    if tokenizer.vocab_size > text.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size} tokens; the text encoder has only {text.vocab_size}")
    return text, weights | {"empty": tokenizer.empty}, tokenizer


def read_scheduler(folder: Path) -> NoiseConfig:
    """The settings of a scheduler; without one those of Stable Diffusion 1."""
    path = folder / "scheduler_config.json"
    if not path.is_file():
        print(f"{path} does not exist; using the noise schedule of Stable Diffusion 1 with objective.prediction=eps")
        return NoiseConfig()
    noise, ignored = noise_schedule.from_diffusers(read_json(path))
    if ignored:
        print(f"sampling does not follow these options of {path}: {', '.join(ignored)}")
    return noise


# ---- the run


def add_precomputed_conditions(unet: ImportedUNet, conditions: Conditions) -> Conditions:
    """The conditions of the pipeline, and Precomputed or Label for the other inputs of the U-Net."""
    text = next((condition for condition, _ in conditions if isinstance(condition, TextConfig)), None)
    if text is not None and text.dim != unet.context_dim:
        raise UserError(f"d_model of the text encoder is {text.dim}; it must be {unet.context_dim}, the U-Net's "
                        f"cross_attention_dim")  # fmt: skip
    low_res_channels = 3 * any(isinstance(condition, LowResConfig) for condition, _ in conditions)
    concat_channels = unet.in_channels - unet.out_channels - low_res_channels
    if concat_channels < 0:
        raise UserError(
            f"in_channels of the U-Net is {unet.in_channels}; with out_channels={unet.out_channels} and a "
            f"low-resolution image it must be at least {unet.out_channels + low_res_channels}"
        )
    conditions = list(conditions)
    if unet.context_dim and text is None:
        conditions.append((PrecomputedConfig("context", unet.context_dim), {}))
    if concat_channels:
        conditions.append((PrecomputedConfig("concat", concat_channels), {}))
    if unet.label_table is not None:
        label = LabelConfig(classes=len(unet.label_table), dim=unet.vector_dim, dropout=0.0, input="vector")
        conditions.append((label, {"embedding.weight": unet.label_table}))
    elif unet.vector_dim:
        conditions.append((PrecomputedConfig("vector", unet.vector_dim), {}))
    return conditions


def assemble_run(
    unet: ImportedUNet, first_stage: ConvertedRun, noise: NoiseConfig, conditions: Conditions = [],  # noqa: B006
    tokenizer: CaptionTokenizer | None = None, **recipe_fields: object,
) -> ConvertedRun:  # fmt: skip
    """A diffusion run; conditions: those of the pipeline."""
    autoencoder = first_stage.recipe.autoencoder
    conditions = add_precomputed_conditions(unet, conditions)
    if unet.out_channels != autoencoder.z_channels:
        raise UserError(f"out_channels of the U-Net is {unet.out_channels}; the latents have {autoencoder.z_channels}")
    height, width = (side * factor_of(autoencoder) for side in unet.size or (32, 32))
    can_drop = any(getattr(condition, "dropout", 0) > 0 for condition, _ in conditions)
    sampling = SamplingConfig(
        "ddim", steps=50, guidance_scale=5.0 if can_drop else 1.0, timestep_spacing=noise.timestep_spacing
    )
    recipe = DiffusionRecipe(
        data=FolderConfig(path="", size=height, width=width if width != height else 0),
        conditions=tuple(condition for condition, _ in conditions),
        unet=unet.config,
        schedule=noise.schedule,
        objective=ObjectiveConfig(prediction=noise.prediction),
        sampling=sampling,
        **recipe_fields,
    )
    weights = {f"unet.{name}": value for name, value in unet.weights.items()}
    for i, (_, values) in enumerate(conditions):
        weights |= {f"conditioner.parts.{i}.{name}": value for name, value in values.items()}
    return ConvertedRun(recipe, weights, first_stage, tokenizer)
