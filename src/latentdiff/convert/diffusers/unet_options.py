"""Options of UNet2DConditionModel and UNet2DModel <-> UNetConfig, for the U-Nets that both projects have."""

from collections.abc import Sequence
from dataclasses import fields
from typing import NoReturn

from latentdiff.config import UserError
from latentdiff.convert.diffusers import model_folder
from latentdiff.convert.diffusers.model_folder import Options
from latentdiff.diffusion.unet import UNet, UNetConfig

CONDITION_MODEL, MODEL = "UNet2DConditionModel", "UNet2DModel"  # with cross-attention, and without
SHARED = {
    "sample_size": None, "layers_per_block": 2, "norm_num_groups": 32, "dropout": 0.0, "attention_head_dim": 8,
    "resnet_time_scale_shift": "default", "flip_sin_to_cos": True, "class_embed_type": None, "num_class_embeds": None,
    "time_embedding_dim": None,
}  # fmt: skip
DEFAULTS = {  # of diffusers, for options that config.json does not have
    CONDITION_MODEL: SHARED | {
        "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1280,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "transformer_layers_per_block": 1, "projection_class_embeddings_input_dim": None,
    },
    MODEL: SHARED | {
        "in_channels": 3, "out_channels": 3, "block_out_channels": (224, 448, 672, 896),
        "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3,
        "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
        "downsample_type": "conv", "upsample_type": "conv", "attn_norm_num_groups": None,
    },
}  # fmt: skip
FIXED_IN_BOTH = {
    "act_fn": ("silu", "swish"), "center_input_sample": False, "downsample_padding": 1, "freq_shift": 0,
    "mid_block_scale_factor": 1, "norm_eps": 1e-5, "time_embedding_type": "positional",
}  # fmt: skip
FIXED = {
    CONDITION_MODEL: FIXED_IN_BOTH | {
        "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "dual_cross_attention": False,
        "mid_block_only_cross_attention": (None, False), "cross_attention_norm": None, "attention_type": "default",
        "addition_embed_type": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
        "class_embeddings_concat": False, "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
        "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "reverse_transformer_layers_per_block": None, "num_attention_heads": None,
    },
    MODEL: FIXED_IN_BOTH | {"mid_block_type": "UNetMidBlock2D", "add_attention": True},
}  # fmt: skip
IGNORED = (  # shapes of weights, half precision, and details of what FIXED excludes
    "use_linear_projection", "upcast_attention", "addition_embed_type_num_heads", "addition_time_embed_dim",
    "num_train_timesteps",
)  # fmt: skip
BLOCKS = {  # type of block -> whether it has attention
    CONDITION_MODEL: {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
    | {"UpBlock2D": False, "CrossAttnUpBlock2D": True},
    MODEL: {"DownBlock2D": False, "ResnetDownsampleBlock2D": False, "AttnDownBlock2D": True}
    | {"UpBlock2D": False, "ResnetUpsampleBlock2D": False, "AttnUpBlock2D": True},
}
EXPRESSIBLE = (  # fields of UNetConfig that have an option, and one that changes no result
    "channels", "channel_mult", "num_res_blocks", "attention_levels", "num_heads", "head_channels", "transformer_depth",
    "dropout", "scale_shift_norm", "resblock_updown", "norm_groups", "gradient_checkpointing",
)  # fmt: skip
CLASS_EMBED_TYPES, TIME_SCALE_SHIFTS = (None, "identity", "simple_projection"), ("default", "scale_shift")


def from_diffusers(config: Options) -> tuple[Options, UNetConfig]:
    """All options of a config.json, with defaults, and the UNetConfig; UserError names an option that UNet lacks."""
    kind = config["_class_name"]
    o = model_folder.read_options(config, DEFAULTS[kind], FIXED[kind], IGNORED)
    _check_options(kind, o)
    levels, resblock_updown = _read_blocks(kind, o)
    attention = _levels_with_attention(levels, o["block_out_channels"])
    config = UNetConfig(
        channels=o["block_out_channels"][0],
        channel_mult=model_folder.channel_mult(o["block_out_channels"]),
        num_res_blocks=common_value(o, "layers_per_block"),
        attention_levels=levels,
        transformer_depth=common_value(o, "transformer_layers_per_block", attention) if kind == CONDITION_MODEL else 1,
        dropout=o["dropout"],
        scale_shift_norm=o["resnet_time_scale_shift"] == "scale_shift",
        resblock_updown=resblock_updown,
        norm_groups=o["norm_num_groups"],
        **_read_heads(kind, o, attention),
    )
    return o, config


def _check_options(kind: str, o: Options) -> None:
    groups, time_embedding_dim = o["norm_num_groups"], 4 * o["block_out_channels"][0]
    attention_groups = o.get("attn_norm_num_groups") or (groups if o["resnet_time_scale_shift"] == "default" else None)
    rules = {  # option -> whether it can be converted, what it must be
        "out_channels": (o["out_channels"] <= o["in_channels"], "at most in_channels: no variance can be predicted"),
        "class_embed_type": (o["class_embed_type"] in CLASS_EMBED_TYPES, f"one of {CLASS_EMBED_TYPES}"),
        "time_embedding_dim": (o["time_embedding_dim"] in (None, time_embedding_dim), f"{time_embedding_dim}"),
        "resnet_time_scale_shift": (o["resnet_time_scale_shift"] in TIME_SCALE_SHIFTS, f"one of {TIME_SCALE_SHIFTS}"),
        "norm_num_groups": (isinstance(groups, int), "a whole number"),
        "attn_norm_num_groups": (kind != MODEL or attention_groups == groups, "norm_num_groups, as in the middle"),
    }
    for name, (is_valid, allowed) in rules.items():
        if not is_valid:
            _refuse(o, name, allowed)


def _read_blocks(kind: str, o: Options) -> tuple[tuple[int, ...], bool]:
    """The levels with attention, and whether residual blocks change the resolution."""
    types = {way: [name.removeprefix("UNetRes") for name in o[f"{way}_block_types"]] for way in ("down", "up")}
    levels = model_folder.levels_with_attention(
        {f"{way}_block_types": names for way, names in types.items()}, BLOCKS[kind]
    )
    if len(types["down"]) != len(o["block_out_channels"]):
        _refuse(o, "down_block_types", "as long as block_out_channels")
    resample = set()
    for way, names in types.items():
        for name in names[:-1]:  # the last block of each half keeps the resolution
            option = o[f"{way}sample_type"] if kind == MODEL and BLOCKS[kind][name] else "conv"
            resample.add("resnet" if name.startswith("Resnet") else option)
    if len(resample) > 1 or resample - {"conv", "resnet"}:
        _refuse(o, "down_block_types", "either with convolutions or with residual blocks for all changes of resolution")
    return levels, resample == {"resnet"}


def _levels_with_attention(levels: tuple[int, ...], widths: list[int]) -> list[int]:
    """The levels with attention, including the coarsest, which has the width of the middle."""
    return sorted({*levels, len(widths) - 1})


def _per_level(o: Options, name: str) -> list[int]:
    value, count = o[name], len(o["block_out_channels"])
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count or not all(isinstance(v, int) for v in values):
        _refuse(o, name, "a whole number, or one for each of block_out_channels")
    return values


def common_value(o: Options, name: str, levels: Sequence[int] = ()) -> int:
    """The value of an option that may be given per level, if it is the same on these levels (default: all)."""
    values = _per_level(o, name)
    different = {values[level] for level in levels or range(len(values))}
    if len(different) > 1:
        _refuse(o, name, "the same on every level")
    return different.pop()


def _read_heads(kind: str, o: Options, attention: list[int]) -> dict[str, int]:
    """attention_head_dim: the width of a head in a UNet2DModel, but the number of heads in a UNet2DConditionModel."""
    if kind == MODEL:
        return {"num_heads": 1} if o["attention_head_dim"] is None else {"head_channels": o["attention_head_dim"]}
    heads, widths = _per_level(o, "attention_head_dim"), o["block_out_channels"]
    if len({heads[i] for i in attention}) == 1:
        return {"num_heads": heads[attention[0]]}
    if len({widths[i] / heads[i] for i in attention}) > 1:
        _refuse(o, "attention_head_dim", "such that the number of heads or their width is the same on every level")
    return {"head_channels": widths[attention[0]] // heads[attention[0]]}


def _refuse(o: Options, name: str, allowed: str) -> NoReturn:
    raise UserError(f"{name} of the U-Net is {o.get(name)!r}; it must be {allowed}")


def to_diffusers(kind: str, unet: UNet, size: tuple[int, int]) -> Options:
    """config.json; size: height and width of the latent."""
    config, levels = unet.config, range(len(unet.config.channel_mult))
    _check_export(kind, config)
    widths = model_folder.block_out_channels(config.channels, config.channel_mult, "unet")
    down, up = (
        [_block_type(kind, way, level in config.attention_levels, config.resblock_updown) for level in levels]
        for way in ("Down", "Up")
    )
    options = {
        "_class_name": kind, "_diffusers_version": model_folder.VERSION, "act_fn": "silu", "norm_eps": 1e-5,
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": unet.conv_in.in_channels, "out_channels": unet.conv_out.out_channels,
        "block_out_channels": widths, "layers_per_block": config.num_res_blocks,
        "down_block_types": down, "up_block_types": up[::-1],
        "norm_num_groups": config.norm_groups, "dropout": config.dropout, "flip_sin_to_cos": True, "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "attention_head_dim": _write_heads(kind, config, widths),
    }  # fmt: skip
    if kind == CONDITION_MODEL:
        return options | {"cross_attention_dim": unet.context_dim, "mid_block_type": "UNetMidBlock2DCrossAttn",
                          "transformer_layers_per_block": config.transformer_depth}  # fmt: skip
    resample = "resnet" if config.resblock_updown else "conv"
    return options | {
        "downsample_type": resample,
        "upsample_type": resample,
        "attn_norm_num_groups": config.norm_groups,
    }


def _check_export(kind: str, config: UNetConfig) -> None:
    """Refuse, by name, a field that diffusers has no option for."""
    names = [f.name for f in fields(config) if f.name not in EXPRESSIBLE and getattr(config, f.name) != f.default]
    if kind == CONDITION_MODEL and config.resblock_updown:
        names.append("resblock_updown")
    if names:
        raise UserError(f"unet.{names[0]}={getattr(config, names[0])!r} has no counterpart in diffusers' {kind}")


def _block_type(kind: str, way: str, attends: bool, resblock_updown: bool) -> str:
    if attends:
        return f"{'CrossAttn' if kind == CONDITION_MODEL else 'Attn'}{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if resblock_updown else f"{way}Block2D"


def _write_heads(kind: str, config: UNetConfig, widths: list[int]) -> int | list[int] | None:
    """The inverse of _read_heads."""
    if kind == CONDITION_MODEL:
        return [max(1, width // config.head_channels) for width in widths] if config.head_channels else config.num_heads
    if config.head_channels or config.num_heads == 1:
        return config.head_channels or None
    dims = {widths[i] // config.num_heads for i in _levels_with_attention(config.attention_levels, widths)}
    if len(dims) > 1:
        raise UserError(
            f"unet.num_heads={config.num_heads} with attention at several widths has no counterpart in diffusers' "
            f"{MODEL}; set unet.head_channels, or one head"
        )
    return dims.pop()
