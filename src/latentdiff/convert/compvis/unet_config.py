"""The U-Net of the original release: unet_config <-> UNetConfig."""

from typing import Any

from latentdiff.config import UserError
from latentdiff.convert.compvis.conditions import UNetInputs
from latentdiff.convert.compvis.config_section import ConfigSection, Field, refuse_export, write_fields
from latentdiff.diffusion.unet import UNetConfig

FIELDS = (
    Field("model_channels", "channels", int),
    Field("channel_mult", "channel_mult", tuple, (1, 2, 4, 8)),
    Field("num_res_blocks", "num_res_blocks", int),
    Field("dropout", "dropout", float, 0.0),
    Field("use_scale_shift_norm", "scale_shift_norm", bool, False),
    Field("resblock_updown", "resblock_updown", bool, False),
)
FIXED = {"norm_groups": 32, "pos_embed": False, "patch_size": 1}  # fields without a counterpart
# The weights do not determine the number of heads, and the release's code changed its rule. These three models were
# trained when num_head_channels had no effect on attention to a context, with one head of full width.
ONE_HEAD = {  # (channels, channel_mult, context_dim, depth) -> model; today's rule gives heads of 32 channels
    (256, (1, 2, 4), 512, 1): "cin256",
    (192, (1, 2, 3, 5), 640, 1): "text2img256",
    (128, (1, 2, 3, 4), 512, 3): "layout2img-openimages256",
}


def read_unet(section: ConfigSection, inputs: UNetInputs, z_channels: int) -> tuple[UNetConfig, bool]:
    """unet_config -> UNetConfig, and whether qkv has the new attention order, as in latentdiff."""
    if section.target() != "UNetModel":
        raise UserError(f"{section.path}.target is {section.target()}; it must be UNetModel")
    params, context_dim = section.section("params"), inputs.context_dim
    _check_params(params, inputs, z_channels)
    fields, depth = params.fields(FIELDS), params.integer("transformer_depth", 1) if context_dim else 1
    num_heads, head_channels = _read_heads(params, (fields["channels"], fields["channel_mult"], context_dim, depth))
    factors = params.integers("attention_resolutions")  # of downsampling; those that no level has are ignored
    levels = tuple(level for level in range(len(fields["channel_mult"])) if 2**level in factors)
    config = UNetConfig(
        **fields, attention_levels=levels, num_heads=num_heads, head_channels=head_channels, transformer_depth=depth
    )
    return config, bool(params.get("use_new_attention_order", False)) and not context_dim


def _check_params(params: ConfigSection, inputs: UNetInputs, z_channels: int) -> None:
    """Refuse variants that UNet does not have, and numbers that do not fit the rest of the config."""
    params.require("dims", 2, 2)
    params.require("conv_resample", True, True)
    params.require("n_embed", None, None)
    params.require("in_channels", z_channels + inputs.concat_channels)
    params.require("out_channels", z_channels)
    params.require("use_spatial_transformer", inputs.context_dim is not None, False)
    if inputs.context_dim is not None and params.get("context_dim") not in (inputs.context_dim, [inputs.context_dim]):
        params.refuse("context_dim", f"it must be {inputs.context_dim}, the width of the condition")
    if params.get("num_classes", None) != inputs.num_classes:
        params.refuse("num_classes", "it needs conditioning_key adm")


def _read_heads(params: ConfigSection, shape: tuple) -> tuple[int, int]:
    """num_heads and head_channels; the latter is 0 if num_heads determines the heads."""
    heads, width = params.integer("num_heads", -1), params.integer("num_head_channels", -1)
    if heads == width == -1:
        raise UserError(f"{params.path} has neither num_heads nor num_head_channels; add one of them")
    if params.get("num_heads_upsample", -1) not in (-1, heads):
        params.refuse("num_heads_upsample", "it must be the same as num_heads")
    if shape in ONE_HEAD and width == 32 and heads == -1 and "legacy" not in params.values:
        print(
            f"attention has one head of full width, as in the training of {ONE_HEAD[shape]}; the release's present code "
            f"reads this config as heads of {width} channels (unet.num_heads and unet.head_channels in recipe.json)"
        )
        return 1, 0
    return (8, width) if width != -1 else (heads, 0)


def write_unet(config: UNetConfig, inputs: UNetInputs, z_channels: int, image_size: int | list[int]) -> dict[str, Any]:
    """The inverse of read_unet; image_size: of the latent."""
    for name, value in FIXED.items():
        if getattr(config, name) != value:
            refuse_export(f"unet.{name}={getattr(config, name)} (it is always {value})")
    params = write_fields(FIELDS, config) | {
        "image_size": image_size,
        "in_channels": z_channels + inputs.concat_channels,
        "out_channels": z_channels,
        "attention_resolutions": [2**level for level in config.attention_levels],
        "legacy": False,  # the heads are those written here
    }
    params |= {"num_head_channels": config.head_channels} if config.head_channels else {"num_heads": config.num_heads}
    if inputs.context_dim:
        params |= {"use_spatial_transformer": True, "transformer_depth": config.transformer_depth}
        params |= {"context_dim": inputs.context_dim}
    if inputs.num_classes:
        params |= {"num_classes": inputs.num_classes}
    return {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": params}
