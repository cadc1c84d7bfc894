"""A recipe as a config of the original release; what the release's code has no words for is refused."""

from typing import Any

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

SCHEDULES = {"scaled_linear": "linear", "linear": "sqrt_linear", "sqrt": "sqrt", "cosine": "cosine"}  # ours -> theirs
Config = dict[str, Any]


def config_of(recipe: AutoencoderRecipe | DiffusionRecipe, first_stage: AutoencoderRecipe) -> Config:
    """The config of a run, but for the scale of its latents."""
    size = max(first_stage.data.image_size)
    if isinstance(recipe, AutoencoderRecipe):
        return {"model": _first_stage(recipe.autoencoder, size, interface=False)}
    return {"model": _diffusion(recipe, first_stage.autoencoder, size)}


def _refuse(what: str) -> None:
    raise UserError(f"the original release has nothing like {what}; this run cannot be exported to it")


# ---- stage one


def _first_stage(config: AutoencoderConfig, size: int, interface: bool) -> Config:
    """interface: inside a diffusion model, where a codebook is asked when decoding."""
    path = "ldm.models.autoencoder"
    if isinstance(config.bottleneck, IdentityConfig):
        if config.channel_mult:
            _refuse("an autoencoder without a bottleneck")
        return {"target": f"{path}.IdentityFirstStage"}
    if config.norm_groups != 32:
        _refuse(f"autoencoder.norm_groups={config.norm_groups} (it always has 32)")
    if bool(config.attention_levels) and not config.mid_attention:
        _refuse("attention on the levels without attention in the middle")
    levels = len(config.channel_mult)
    size = max(1, size >> (levels - 1)) << (levels - 1)  # nominal; the release places attention by it
    kl = isinstance(config.bottleneck, KLConfig)
    networks = {
        "double_z": kl,
        "z_channels": config.inner_channels or config.z_channels,
        "resolution": size,
        "in_channels": 3,
        "out_ch": 3,
        "ch": config.channels,
        "ch_mult": list(config.channel_mult),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": [size >> level for level in config.attention_levels],
        "attn_type": "vanilla" if config.mid_attention else "none",
        "dropout": config.dropout,
    }
    params = {"embed_dim": config.z_channels, "ddconfig": networks, "lossconfig": {"target": "torch.nn.Identity"}}
    if kl:
        return {"target": f"{path}.AutoencoderKL", "params": params}
    kind = "VQModelInterface" if interface else "VQModel"
    return {"target": f"{path}.{kind}", "params": params | {"n_embed": config.bottleneck.codebook_size}}


# ---- stage two


def _diffusion(recipe: DiffusionRecipe, first_stage: AutoencoderConfig, size: int) -> Config:
    _check(recipe)
    schedule, objective = recipe.schedule, recipe.objective
    factor = 2 ** max(0, len(first_stage.channel_mult) - 1)
    height, width = (side // factor for side in recipe.data.image_size)
    side = height if height == width else [height, width]
    params = {
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "cosine_s": schedule.cosine_s,
        "beta_schedule": SCHEDULES[schedule.kind],
        "timesteps": schedule.timesteps,
        "parameterization": objective.prediction,
        "loss_type": objective.loss,
        "first_stage_key": "image",
        "image_size": side,
        "channels": first_stage.z_channels,
        "use_ema": recipe.train.ema_decay > 0,
        "unet_config": _unet(recipe, first_stage.z_channels, side),
        "first_stage_config": _first_stage(first_stage, size, interface=True),
    }
    told = [_condition(c, factor) for c in recipe.conditions] or [{"cond_stage_config": "__is_unconditional__"}]
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"base_learning_rate": recipe.train.lr, "target": target, "params": params | told[0]}


def _check(recipe: DiffusionRecipe) -> None:
    schedule = recipe.schedule
    if schedule.kind not in SCHEDULES:
        _refuse(f"schedule.kind={schedule.kind}")
    if schedule.zero_terminal_snr or schedule.snr_shift != 1:
        _refuse(f"schedule.snr_shift={schedule.snr_shift:g} or zero_terminal_snr={schedule.zero_terminal_snr}")
    if recipe.objective.prediction not in ("eps", "x0"):
        _refuse(f"objective.prediction={recipe.objective.prediction}")
    if len(recipe.conditions) > 1:
        _refuse("several conditions at once")


def _unet(recipe: DiffusionRecipe, z_channels: int, side: Any) -> Config:
    unet = recipe.unet
    extra, context_dim, concat = _doors(recipe, z_channels)
    if unet.norm_groups != 32:
        _refuse(f"unet.norm_groups={unet.norm_groups} (it always has 32)")
    if unet.blocks != "classic":
        _refuse(f"unet.blocks={unet.blocks}")
    if unet.pos_embed:
        _refuse("unet.pos_embed=true")
    if unet.patch_size != 1:
        _refuse(f"unet.patch_size={unet.patch_size}")
    params = {
        "image_size": side,
        "in_channels": z_channels + concat,
        "out_channels": z_channels,
        "model_channels": unet.channels,
        "attention_resolutions": [2**level for level in unet.attention_levels],
        "num_res_blocks": unet.num_res_blocks,
        "channel_mult": list(unet.channel_mult),
        "dropout": unet.dropout,
        "use_scale_shift_norm": unet.scale_shift_norm,
        "resblock_updown": unet.resblock_updown,
        "legacy": False,  # heads as they are written here
    }
    params |= {"num_head_channels": unet.head_channels} if unet.head_channels else {"num_heads": unet.num_heads}
    if context_dim:
        params |= {"use_spatial_transformer": True, "transformer_depth": unet.transformer_depth}
        params |= {"context_dim": context_dim}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params | extra}


def _doors(recipe: DiffusionRecipe, z_channels: int) -> tuple[Config, int | None, int]:
    """What the condition changes in the U-Net: more fields, the context's width, the channels beside z."""
    if not recipe.conditions:
        return {}, None, 0
    c = recipe.conditions[0]
    if isinstance(c, LabelConfig) and c.input == "vector":
        return {"num_classes": c.classes + (c.dropout > 0)}, None, 0
    concat = {SemanticConfig: lambda: c.channels, LowResConfig: lambda: 3, MaskedConfig: lambda: z_channels + 1}
    if type(c) in concat:
        return {}, None, concat[type(c)]()
    return {}, c.dim, 0


# ---- conditions


def _condition(c: Any, factor: int) -> Config:
    """cond_stage_config, its key, and how the U-Net takes it."""
    if getattr(c, "mask_padding", False):
        _refuse("mask_padding=true: its text encoder reads padding as any other word (train with mask_padding=false)")
    if getattr(c, "every_pixel", False):
        _refuse("every_pixel=true: its inpainting sees one pixel of the mask for each cell")
    if isinstance(c, (TextConfig, LayoutConfig)) and (c.heads, c.head_dim) != (8, 64):
        _refuse(f"a text encoder with {c.heads} heads of {c.head_dim} (it always has 8 of 64)")
    if isinstance(c, LabelConfig) and c.input == "vector":
        return _stage("adm", "class_label", "torch.nn.Identity", {}, False)
    return CONDITIONS[type(c)](c, factor)


def _stage(key: str, field: str, target: str, params: Config, trainable: bool = True) -> Config:
    stage = target if target.startswith("__") else {"target": target} | ({"params": params} if params else {})
    about = {"conditioning_key": key, "cond_stage_key": field, "cond_stage_trainable": trainable}
    return about | {"cond_stage_config": stage}


def _bert(c: TextConfig | LayoutConfig, length: int, **more: Any) -> Config:
    return {"n_embed": c.dim, "n_layer": c.depth, "vocab_size": c.vocab_size, "max_seq_len": length} | more


MODULES = "ldm.modules.encoders.modules"
CONDITIONS = {
    TextConfig: lambda c, factor: _stage("crossattn", "caption", f"{MODULES}.BERTEmbedder", _bert(c, c.length)),
    LayoutConfig: lambda c, factor: _stage(
        "crossattn", "coordinates_bbox", f"{MODULES}.BERTEmbedder",
        _bert(c, 3 * c.objects + 2 * c.whole_image_tokens, use_tokenizer=False),
    ),
    LabelConfig: lambda c, factor: _stage(
        "crossattn", "class_label", f"{MODULES}.ClassEmbedder",
        {"embed_dim": c.dim, "n_classes": c.classes + (c.dropout > 0), "key": "class_label"},
    ),
    SemanticConfig: lambda c, factor: _stage(
        "concat", "segmentation", f"{MODULES}.SpatialRescaler",
        {"n_stages": factor.bit_length() - 1, "in_channels": c.classes, "out_channels": c.channels},
    ),
    LowResConfig: lambda c, factor: _stage("concat", "LR_image", "torch.nn.Identity", {}, False),
    MaskedConfig: lambda c, factor: _stage("concat", "masked_image", "__is_first_stage__", {}, False),
}  # fmt: skip
