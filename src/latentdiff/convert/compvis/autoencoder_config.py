"""The first stages of the original release: their config <-> AutoencoderConfig."""

from dataclasses import replace
from typing import Any

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis.config_section import ConfigSection, Field, refuse_export, write_fields
from latentdiff.convert.converted_run import PIXEL_SPACE
from latentdiff.data.folder import FolderConfig
from latentdiff.recipe import AutoencoderRecipe

FIELDS = (  # of ddconfig
    Field("ch", "channels", int),
    Field("ch_mult", "channel_mult", tuple, (1, 2, 4, 8)),
    Field("num_res_blocks", "num_res_blocks", int),
    Field("dropout", "dropout", float, 0.0),
)
OPTIONAL = {"resamp_with_conv": True, "tanh_out": False, "give_pre_end": False, "use_linear_attn": False}
PACKAGE = "ldm.models.autoencoder"


# ---- import


def read_first_stage(section: ConfigSection, others: tuple[str, ...] = ()) -> AutoencoderRecipe:
    """The recipe of a first stage; others: targets to name in the error, because the caller accepts them."""
    target = section.target()
    if target not in FIRST_STAGES:
        raise UserError(f"{section.path}.target is {target}; it must be one of {', '.join((*FIRST_STAGES, *others))}")
    config, size = FIRST_STAGES[target](section.section("params", {}))
    base = AutoencoderRecipe(autoencoder=config)
    return replace(base, data=FolderConfig(size=size), train=replace(base.train, ema_decay=0.0))


def _read_networks(params: ConfigSection, double_z: bool) -> tuple[AutoencoderConfig, int]:
    """Encoder and decoder, which are the same for KL and VQ, and the size of the images."""
    dd, z_channels = params.section("ddconfig"), params.integer("embed_dim")
    dd.require("double_z", double_z, default=True)
    dd.require("in_channels", 3)
    dd.require("out_ch", 3)
    for name, value in OPTIONAL.items():
        dd.require(name, value, default=value)
    mid_attention = dd.choice("attn_type", ("vanilla", "none"), "vanilla") == "vanilla"
    config, size, inner = AutoencoderConfig(**dd.fields(FIELDS)), dd.integer("resolution"), dd.integer("z_channels")
    resolutions, levels = dd.integers("attn_resolutions") if mid_attention else (), range(len(config.channel_mult))
    if resolutions and size % 2 ** levels[-1]:
        dd.refuse("resolution", f"it must be a multiple of {2 ** levels[-1]} for {len(levels)} levels")
    return replace(
        config,
        attention_levels=tuple(level for level in levels if size // 2**level in resolutions),
        mid_attention=mid_attention,
        z_channels=z_channels,
        inner_channels=0 if inner == z_channels else inner,
    ), size


def _read_kl(params: ConfigSection) -> tuple[AutoencoderConfig, int]:
    config, size = _read_networks(params, double_z=True)
    weight = params.section("lossconfig", {}).section("params", {}).number("kl_weight", 1.0)
    return replace(config, bottleneck=KLConfig(weight=weight)), size


def _read_vq(params: ConfigSection) -> tuple[AutoencoderConfig, int]:
    config, size = _read_networks(params, double_z=False)
    weight = params.section("lossconfig", {}).section("params", {}).number("codebook_weight", 1.0)
    return replace(config, bottleneck=VQConfig(params.integer("n_embed"), weight=weight, reset_after=0)), size


def _read_pixel_space(params: ConfigSection) -> tuple[AutoencoderConfig, int]:
    return PIXEL_SPACE, 256


FIRST_STAGES = {
    "AutoencoderKL": _read_kl, "VQModel": _read_vq, "VQModelInterface": _read_vq,
    "IdentityFirstStage": _read_pixel_space, "Identity": _read_pixel_space,
}  # fmt: skip


# ---- export


def write_first_stage(config: AutoencoderConfig, image_size: int, frozen: bool) -> dict[str, Any]:
    """The config of a first stage; frozen: inside a diffusion model, where VQ has another class."""
    if isinstance(config.bottleneck, IdentityConfig):
        if config.channel_mult:
            refuse_export("autoencoder.bottleneck=Identity with a network")
        return {"target": f"{PACKAGE}.IdentityFirstStage"}
    if config.norm_groups != 32:
        refuse_export(f"autoencoder.norm_groups={config.norm_groups} (it is always 32)")
    if config.attention_levels and not config.mid_attention:
        refuse_export("autoencoder.mid_attention=false with attention_levels")
    last = len(config.channel_mult) - 1
    size = max(1, image_size >> last) << last  # a multiple of the factor: the release finds attention levels by it
    is_kl = isinstance(config.bottleneck, KLConfig)
    ddconfig = write_fields(FIELDS, config) | {
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
        return {"target": f"{PACKAGE}.AutoencoderKL", "params": params}
    target = f"{PACKAGE}.{'VQModelInterface' if frozen else 'VQModel'}"
    return {"target": target, "params": params | {"n_embed": config.bottleneck.codebook_size}}
