"""The networks of the original release: configs of first stages <-> AutoencoderConfig, unet_config <-> UNetConfig."""

from dataclasses import replace
from typing import Any

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis.conditions import UNetInputs
from latentdiff.convert.compvis.config_section import ConfigSection, Field, refuse_export, write_fields
from latentdiff.convert.converted_run import PIXEL_SPACE
from latentdiff.data.folder import FolderConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import AutoencoderRecipe

AUTOENCODERS = "ldm.models.autoencoder"
AUTOENCODER_FIELDS = (  # of ddconfig
    Field("ch", "channels", int),
    Field("ch_mult", "channel_mult", tuple, (1, 2, 4, 8)),
    Field("num_res_blocks", "num_res_blocks", int),
    Field("dropout", "dropout", float, 0.0),
)
OPTIONAL = {"resamp_with_conv": True, "tanh_out": False, "give_pre_end": False, "use_linear_attn": False}
UNET_FIELDS = (
    Field("model_channels", "channels", int),
    Field("channel_mult", "channel_mult", tuple, (1, 2, 4, 8)),
    Field("num_res_blocks", "num_res_blocks", int),
    Field("dropout", "dropout", float, 0.0),
    Field("use_scale_shift_norm", "scale_shift_norm", bool, False),
    Field("resblock_updown", "resblock_updown", bool, False),
)
UNET_FIXED = {"norm_groups": 32, "pos_embed": False, "patch_size": 1}  # fields without a counterpart
# The weights do not determine the number of heads, and the release's code changed its rule. These three models were
# trained when num_head_channels had no effect on attention to a context, with one head of full width.
ONE_HEAD = {  # (channels, channel_mult, context_dim, depth) -> model; today's rule gives heads of 32 channels
    (256, (1, 2, 4), 512, 1): "cin256",
    (192, (1, 2, 3, 5), 640, 1): "text2img256",
    (128, (1, 2, 3, 4), 512, 3): "layout2img-openimages256",
}


# ---- first stages


def read_first_stage(section: ConfigSection, others: tuple[str, ...] = ()) -> AutoencoderRecipe:
    """The recipe of a first stage; others: targets to name in the error, because the caller accepts them."""
    target, params = section.target(), section.section("params", {})
    if target not in ("AutoencoderKL", "VQModel", "VQModelInterface", "IdentityFirstStage", "Identity"):
        known = ("AutoencoderKL", "VQModel", "VQModelInterface", "IdentityFirstStage", *others)
        raise UserError(f"{section.path}.target is {target}; it must be one of {', '.join(known)}")
    config, size = (PIXEL_SPACE, 256) if "Identity" in target else _read_autoencoder(params, target == "AutoencoderKL")
    base = AutoencoderRecipe(autoencoder=config)
    return replace(base, data=FolderConfig(size=size), train=replace(base.train, ema_decay=0.0))


def _read_autoencoder(params: ConfigSection, is_kl: bool) -> tuple[AutoencoderConfig, int]:
    """The config, and the size of the images."""
    dd, z_channels, loss = (
        params.section("ddconfig"),
        params.get("embed_dim", kind=int),
        params.section("lossconfig", {}),
    )
    dd.require("double_z", is_kl, default=True)
    dd.require("in_channels", 3)
    dd.require("out_ch", 3)
    for name, value in OPTIONAL.items():
        dd.require(name, value, default=value)
    mid_attention = dd.choice("attn_type", ("vanilla", "none"), "vanilla") == "vanilla"
    fields, size, inner = dd.fields(AUTOENCODER_FIELDS), dd.get("resolution", kind=int), dd.get("z_channels", kind=int)
    resolutions = dd.get("attn_resolutions", kind=tuple) if mid_attention else ()
    levels = range(len(fields["channel_mult"]))
    if resolutions and size % 2 ** levels[-1]:
        dd.refuse("resolution", f"it must be a multiple of {2 ** levels[-1]} for {len(levels)} levels")
    weight = loss.section("params", {}).get("kl_weight" if is_kl else "codebook_weight", 1.0, float)
    config = AutoencoderConfig(
        **fields,
        attention_levels=tuple(level for level in levels if size // 2**level in resolutions),
        mid_attention=mid_attention,
        z_channels=z_channels,
        inner_channels=0 if inner == z_channels else inner,
        bottleneck=KLConfig(weight)
        if is_kl
        else VQConfig(params.get("n_embed", kind=int), weight=weight, reset_after=0),
    )
    return config, size


def write_first_stage(config: AutoencoderConfig, image_size: int, frozen: bool) -> dict[str, Any]:
    """The inverse of read_first_stage; frozen: inside a diffusion model, where VQ has another class."""
    if isinstance(config.bottleneck, IdentityConfig):
        if config.channel_mult:
            refuse_export("autoencoder.bottleneck=Identity with a network")
        return {"target": f"{AUTOENCODERS}.IdentityFirstStage"}
    if config.norm_groups != 32:
        refuse_export(f"autoencoder.norm_groups={config.norm_groups} (it is always 32)")
    if config.attention_levels and not config.mid_attention:
        refuse_export("autoencoder.mid_attention=false with attention_levels")
    last = len(config.channel_mult) - 1
    size = max(1, image_size >> last) << last  # a multiple of the factor: the release finds attention levels by it
    is_kl = isinstance(config.bottleneck, KLConfig)
    ddconfig = write_fields(AUTOENCODER_FIELDS, config) | {
        "double_z": is_kl,
        "z_channels": config.inner_channels or config.z_channels,
        "resolution": size,
        "in_channels": 3,
        "out_ch": 3,
        "attn_resolutions": [size >> level for level in config.attention_levels],
        "attn_type": "vanilla" if config.mid_attention else "none",
    }
    params = {"embed_dim": config.z_channels, "ddconfig": ddconfig, "lossconfig": {"target": "torch.nn.Identity"}}
    if is_kl:
        return {"target": f"{AUTOENCODERS}.AutoencoderKL", "params": params}
    target = f"{AUTOENCODERS}.{'VQModelInterface' if frozen else 'VQModel'}"
    return {"target": target, "params": params | {"n_embed": config.bottleneck.codebook_size}}


# ---- the U-Net


def read_unet(section: ConfigSection, inputs: UNetInputs, z_channels: int) -> tuple[UNetConfig, bool]:
    """unet_config -> UNetConfig, and whether qkv has the new attention order, as in latentdiff."""
    if section.target() != "UNetModel":
        raise UserError(f"{section.path}.target is {section.target()}; it must be UNetModel")
    params, context_dim = section.section("params"), inputs.context_dim
    for name, value in {"dims": 2, "conv_resample": True, "n_embed": None}.items():
        params.require(name, value, default=value)
    params.require("in_channels", z_channels + inputs.concat_channels)
    params.require("out_channels", z_channels)
    params.require("use_spatial_transformer", context_dim is not None, False)
    if context_dim is not None and params.get("context_dim") not in (context_dim, [context_dim]):
        params.refuse("context_dim", f"it must be {context_dim}, the width of the condition")
    if params.get("num_classes", None) != inputs.num_classes:
        params.refuse("num_classes", "it needs conditioning_key adm")
    fields, depth = params.fields(UNET_FIELDS), params.get("transformer_depth", 1, int) if context_dim else 1
    num_heads, head_channels = _read_heads(params, (fields["channels"], fields["channel_mult"], context_dim, depth))
    factors = params.get("attention_resolutions", kind=tuple)  # of downsampling; those that no level has are ignored
    levels = tuple(level for level in range(len(fields["channel_mult"])) if 2**level in factors)
    config = UNetConfig(
        **fields, attention_levels=levels, num_heads=num_heads, head_channels=head_channels, transformer_depth=depth
    )
    return config, bool(params.get("use_new_attention_order", False)) and not context_dim


def _read_heads(params: ConfigSection, shape: tuple) -> tuple[int, int]:
    """num_heads and head_channels; the latter is 0 if num_heads determines the heads."""
    heads, width = params.get("num_heads", -1, int), params.get("num_head_channels", -1, int)
    if heads == width == -1:
        raise UserError(f"{params.path} has neither num_heads nor num_head_channels; add one of them")
    if params.get("num_heads_upsample", -1) not in (-1, heads):
        params.refuse("num_heads_upsample", "it must be the same as num_heads")
    if shape in ONE_HEAD and width == 32 and heads == -1 and "legacy" not in params.values:
        print(
            f"attention has one head of full width, as in the training of {ONE_HEAD[shape]}; the release's later code "
            f"reads this config as heads of {width} channels (unet.num_heads and unet.head_channels in recipe.json)"
        )
        return 1, 0
    return (8, width) if width != -1 else (heads, 0)


def write_unet(config: UNetConfig, inputs: UNetInputs, z_channels: int, image_size: int | list[int]) -> dict[str, Any]:
    """The inverse of read_unet; image_size: of the latent."""
    for name, value in UNET_FIXED.items():
        if getattr(config, name) != value:
            refuse_export(f"unet.{name}={getattr(config, name)} (it is always {value})")
    params = write_fields(UNET_FIELDS, config) | {
        "image_size": image_size,
        "in_channels": z_channels + inputs.concat_channels,
        "out_channels": z_channels,
        "attention_resolutions": [2**level for level in config.attention_levels],
        "legacy": False,  # the heads are those written here
    }
    params |= {"num_head_channels": config.head_channels} if config.head_channels else {"num_heads": config.num_heads}
    if inputs.context_dim:
        params |= {"use_spatial_transformer": True, "context_dim": inputs.context_dim}
        params |= {"transformer_depth": config.transformer_depth}
    if inputs.num_classes:
        params |= {"num_classes": inputs.num_classes}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}
