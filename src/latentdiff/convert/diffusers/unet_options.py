"""Which U-Nets diffusers and we both know: options of UNet2DConditionModel and UNet2DModel <-> UNetConfig."""

from dataclasses import fields, replace
from typing import NoReturn

from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers.folder import Options
from latentdiff.diffusion.unet import UNet, UNetConfig

TEXT, PLAIN = "UNet2DConditionModel", "UNet2DModel"  # with cross-attention and without
SHARED = {
    "sample_size": None, "layers_per_block": 2, "norm_num_groups": 32, "dropout": 0.0, "attention_head_dim": 8,
    "resnet_time_scale_shift": "default", "flip_sin_to_cos": True, "class_embed_type": None, "num_class_embeds": None,
    "time_embedding_dim": None,
}  # fmt: skip
READ = {  # what config.json leaves out has these values
    TEXT: SHARED | {
        "in_channels": 4, "out_channels": 4, "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1280,
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "transformer_layers_per_block": 1, "projection_class_embeddings_input_dim": None,
    },
    PLAIN: SHARED | {
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
    TEXT: FIXED_IN_BOTH | {
        "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "dual_cross_attention": False,
        "mid_block_only_cross_attention": (None, False), "cross_attention_norm": None, "attention_type": "default",
        "addition_embed_type": None, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
        "class_embeddings_concat": False, "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
        "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3,
        "conv_out_kernel": 3, "reverse_transformer_layers_per_block": None, "num_attention_heads": None,
    },
    PLAIN: FIXED_IN_BOTH | {"mid_block_type": "UNetMidBlock2D", "add_attention": True},
}  # fmt: skip
IGNORED = (  # of shape, of half precision, or of what is fixed to be absent
    "use_linear_projection", "upcast_attention", "addition_embed_type_num_heads", "addition_time_embed_dim",
    "num_train_timesteps",
)  # fmt: skip
BLOCKS = {  # kind -> whether it attends, and how it changes the size (None: as an option says)
    TEXT: {"DownBlock2D": (False, "conv"), "CrossAttnDownBlock2D": (True, "conv")}
    | {"UpBlock2D": (False, "conv"), "CrossAttnUpBlock2D": (True, "conv")},
    PLAIN: {"DownBlock2D": (False, "conv"), "UpBlock2D": (False, "conv")}
    | {"ResnetDownsampleBlock2D": (False, "resnet"), "ResnetUpsampleBlock2D": (False, "resnet")}
    | {"AttnDownBlock2D": (True, None), "AttnUpBlock2D": (True, None)},
}
TOLD = (  # fields of ours that their options hold, and one that is of memory alone
    "channels", "channel_mult", "num_res_blocks", "attention_levels", "num_heads", "head_channels", "transformer_depth",
    "dropout", "scale_shift_norm", "resblock_updown", "norm_groups", "recompute",
)  # fmt: skip
CLASSES = (None, "identity", "simple_projection")  # kinds of class embedding that we know


# ---- theirs -> ours


def read(config: Options) -> Options:
    """config.json with every option that is read; UserError names one that we cannot follow."""
    kind = config["_class_name"]
    o = folders.options(config, READ[kind], FIXED[kind], IGNORED)
    if o["out_channels"] > o["in_channels"]:
        _refuse(o, "out_channels", "it is more than in_channels, and a U-Net that predicts a variance too is not known")
    if o["class_embed_type"] not in CLASSES:
        _refuse(o, "class_embed_type", f"known are {', '.join(map(str, CLASSES))}")
    if o["time_embedding_dim"] not in (None, 4 * o["block_out_channels"][0]):
        _refuse(o, "time_embedding_dim", "it must be four times the first of block_out_channels")
    if o["resnet_time_scale_shift"] not in ("default", "scale_shift"):
        _refuse(o, "resnet_time_scale_shift", "known are default and scale_shift")
    if not isinstance(o["norm_num_groups"], int):
        _refuse(o, "norm_num_groups", "it must be a number")
    default = o["norm_num_groups"] if o["resnet_time_scale_shift"] == "default" else None
    if kind == PLAIN and (o["attn_norm_num_groups"] or default) != o["norm_num_groups"]:
        _refuse(o, "attn_norm_num_groups", "the middle attention must have the norm of the others, norm_num_groups")
    return o


def from_theirs(kind: str, o: Options) -> UNetConfig:
    """The options of `read` -> ours."""
    levels, updown = _levels(kind, o)
    attending = _attending(levels, o["block_out_channels"])
    depths = _per_level(o, "transformer_layers_per_block") if kind == TEXT else [1] * len(o["block_out_channels"])
    return UNetConfig(
        channels=o["block_out_channels"][0],
        channel_mult=folders.multiples("block_out_channels", o["block_out_channels"]),
        num_res_blocks=folders.same("layers_per_block", o["layers_per_block"]),
        attention_levels=levels,
        transformer_depth=folders.same("transformer_layers_per_block", [depths[i] for i in attending]),
        dropout=o["dropout"],
        scale_shift_norm=o["resnet_time_scale_shift"] == "scale_shift",
        resblock_updown=updown,
        norm_groups=o["norm_num_groups"],
        **_heads(kind, o, attending),
    )


def _levels(kind: str, o: Options) -> tuple[tuple[int, ...], bool]:
    """The levels that attend, and whether residual blocks change the size."""
    rows = {}
    for way in ("down", "up"):
        names = [name.removeprefix("UNetRes") for name in o[f"{way}_block_types"]]
        if set(names) - set(BLOCKS[kind]):
            _refuse(o, f"{way}_block_types", f"known are {', '.join(BLOCKS[kind])}")
        rows[way] = [(attends, how or o[f"{way}sample_type"]) for attends, how in map(BLOCKS[kind].get, names)]
    attends = [attends for attends, _ in rows["down"]]
    if [attends for attends, _ in rows["up"]] != attends[::-1] or len(attends) != len(o["block_out_channels"]):
        _refuse(o, "up_block_types", "they must mirror down_block_types, one for each of block_out_channels")
    resample = {how for row in rows.values() for _, how in row[:-1]}  # the last of either way keeps its size
    if len(resample) > 1 or resample - {"conv", "resnet"}:
        _refuse(o, "down_block_types", "sizes must change by convolutions alone or by residual blocks alone, both ways")
    return tuple(level for level, yes in enumerate(attends) if yes), resample == {"resnet"}


def _attending(levels: tuple[int, ...], widths: list[int]) -> list[int]:
    """The levels of all attention: those that attend, and the coarsest, whose width the middle has."""
    return sorted({*levels, len(widths) - 1})


def _per_level(o: Options, name: str) -> list[int]:
    value, levels = o[name], len(o["block_out_channels"])
    values = list(value) if isinstance(value, (list, tuple)) else [value] * levels
    if len(values) != levels or not all(isinstance(v, int) for v in values):
        _refuse(o, name, "it must be a number, or one for each of block_out_channels")
    return values


def _heads(kind: str, o: Options, attending: list[int]) -> dict[str, int]:
    """attention_head_dim: the width of a head in a UNet2DModel, but the count of heads in a UNet2DConditionModel."""
    if kind == PLAIN:
        return {"num_heads": 1} if o["attention_head_dim"] is None else {"head_channels": o["attention_head_dim"]}
    counts, widths = _per_level(o, "attention_head_dim"), o["block_out_channels"]
    if len({counts[i] for i in attending}) == 1:
        return {"num_heads": counts[attending[0]]}
    if len({widths[i] / counts[i] for i in attending}) > 1:
        _refuse(o, "attention_head_dim", "all attention must have as many heads, or heads as wide")
    return {"head_channels": widths[attending[0]] // counts[attending[0]]}


def _refuse(o: Options, name: str, wanted: str) -> NoReturn:
    raise UserError(f"the U-Net has {name}={o[name]!r}; {wanted}")


# ---- ours -> theirs


def to_theirs(kind: str, unet: UNet, size: tuple[int, int]) -> Options:
    """config.json; size [h, w] of the latent."""
    config, levels = unet.config, range(len(unet.config.channel_mult))
    _check(kind, config)
    widths, attends = folders.widths(config.channels, config.channel_mult, "unet"), config.attention_levels
    down, up = ({level: _block(kind, way, level in attends, config.resblock_updown) for level in levels}
                for way in ("Down", "Up"))  # fmt: skip
    options = {
        "_class_name": kind, "_diffusers_version": folders.VERSION, "act_fn": "silu", "norm_eps": 1e-5,
        "sample_size": size[0] if size[0] == size[1] else list(size),
        "in_channels": unet.conv_in.in_channels, "out_channels": unet.conv_out.out_channels,
        "block_out_channels": widths, "layers_per_block": config.num_res_blocks,
        "down_block_types": [down[level] for level in levels], "up_block_types": [up[level] for level in levels[::-1]],
        "norm_num_groups": config.norm_groups, "dropout": config.dropout, "flip_sin_to_cos": True, "freq_shift": 0,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift_norm else "default",
        "attention_head_dim": _head_dim(kind, config, widths),
    }  # fmt: skip
    if kind == TEXT:
        return options | {"cross_attention_dim": unet.context_dim, "mid_block_type": "UNetMidBlock2DCrossAttn",
                          "transformer_layers_per_block": config.transformer_depth}  # fmt: skip
    how = "resnet" if config.resblock_updown else "conv"
    return options | {"downsample_type": how, "upsample_type": how, "attn_norm_num_groups": config.norm_groups}


def _check(kind: str, config: UNetConfig) -> None:
    """Refuse, by name, a field that diffusers has no option for."""
    other = replace(UNetConfig(), **{name: getattr(config, name) for name in TOLD})
    odd = [f.name for f in fields(config) if getattr(config, f.name) != getattr(other, f.name)]
    if kind == TEXT and config.resblock_updown:
        odd.append("resblock_updown")
    if odd:
        raise UserError(f"diffusers' {kind} cannot express unet.{odd[0]}={getattr(config, odd[0])!r}")


def _block(kind: str, way: str, attends: bool, updown: bool) -> str:
    if kind == TEXT:
        return f"CrossAttn{way}Block2D" if attends else f"{way}Block2D"
    if attends:
        return f"Attn{way}Block2D"
    return f"Resnet{way}sampleBlock2D" if updown else f"{way}Block2D"


def _head_dim(kind: str, config: UNetConfig, widths: list[int]) -> int | list[int] | None:
    """The inverse of _heads."""
    if kind == TEXT:
        return [max(1, width // config.head_channels) for width in widths] if config.head_channels else config.num_heads
    if config.head_channels or config.num_heads == 1:
        return config.head_channels or None
    dims = {widths[i] // config.num_heads for i in _attending(config.attention_levels, widths)}
    if len(dims) > 1:
        raise UserError(
            f"diffusers' {PLAIN} cannot express unet.num_heads={config.num_heads} with attention over several widths; "
            f"it takes the width of a head (unet.head_channels), or one head"
        )
    return dims.pop()
