"""AutoencoderKL and VQModel of diffusers <-> our Autoencoder."""

from collections.abc import Iterable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers.folder import Options, Place, Weights

SHARED = {
    "block_out_channels": (64,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1, "norm_num_groups": 32, "mid_block_add_attention": True, "sample_size": 32,
    "scaling_factor": 0.18215,
}  # fmt: skip
READ = {  # what config.json leaves out has these values
    "AutoencoderKL": SHARED
    | {"latent_channels": 4, "shift_factor": None, "latents_mean": None, "latents_std": None}
    | {"use_quant_conv": True, "use_post_quant_conv": True},
    "VQModel": SHARED | {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None},
}
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": ("silu", "swish"), "norm_type": "group"}
FIXED |= {"lookup_from_codebook": False}
IGNORED = ("force_upcast",)  # of half precision
STATISTICS = ("scaling_factor", "shift_factor")  # of the latents
ATTEND = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
ATTEND |= {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}

WORDS = {  # parts of a name: ours -> theirs
    "down": "down_blocks", "up": "up_blocks", "block": "resnets", "attn": "attentions", "mid": "mid_block",
    "block_1": "resnets.0", "block_2": "resnets.1", "attn_1": "attentions.0", "nin_shortcut": "conv_shortcut",
    "downsample": "downsamplers.0", "upsample": "upsamplers.0", "norm_out": "conv_norm_out",
}  # fmt: skip
IN_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


# ---- theirs -> ours


class Imported(NamedTuple):
    config: AutoencoderConfig
    weights: Weights
    size: int  # of the pictures


def from_theirs(config: Options, state: Weights) -> Imported:
    """config.json and weights of an AutoencoderKL or a VQModel -> what our Autoencoder is made of."""
    o = folders.options(config, READ[config["_class_name"]], FIXED, IGNORED)
    mine = _config(o)
    with torch.device("meta"):
        network = Autoencoder(mine)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    for name, switch in (("quant_conv", "use_quant_conv"), ("post_quant_conv", "use_post_quant_conv")):
        if not o.get(switch, True):  # the same as a convolution that changes nothing
            width = shapes[f"{name}.weight"][0]
            state = state | {f"{name}.weight": torch.eye(width)[..., None, None], f"{name}.bias": torch.zeros(width)}
    weights = folders.from_theirs(state, _places(mine), shapes, config["_class_name"])
    size = o["sample_size"] if isinstance(o["sample_size"], int) else min(o["sample_size"])
    return Imported(mine, weights | statistics(o, mine.z_channels), size)


def _config(o: Options) -> AutoencoderConfig:
    attend = [ATTEND.get(kind) for kind in o["down_block_types"]]
    if None in attend or [ATTEND.get(kind) for kind in o["up_block_types"]] != attend[::-1]:
        raise UserError(
            f"up_block_types is {list(o['up_block_types'])}; they must mirror down_block_types, and all be of "
            f"{', '.join(ATTEND)}"
        )
    mine = AutoencoderConfig(
        channels=o["block_out_channels"][0],
        channel_mult=folders.multiples("block_out_channels", o["block_out_channels"]),
        num_res_blocks=o["layers_per_block"],
        attention_levels=tuple(level for level, attends in enumerate(attend) if attends),
        mid_attention=o["mid_block_add_attention"],
        z_channels=o["latent_channels"],
        norm_groups=o["norm_num_groups"],
    )
    if "num_vq_embeddings" not in o:
        return mine
    codes = replace(mine, bottleneck=VQConfig(codebook_size=o["num_vq_embeddings"]))
    width = o["vq_embed_dim"] or o["latent_channels"]
    return codes if width == codes.z_channels else replace(codes, z_channels=width, inner_channels=codes.z_channels)


def statistics(o: Options, channels: int) -> Weights:
    """shift and scale [C, 1, 1] of z = (latent - shift)·scale, from what config.json says of the latents."""
    shift, mean, std = (o.get(name) for name in ("shift_factor", "latents_mean", "latents_std"))
    if shift is not None and mean is not None:
        raise UserError("config.json has both shift_factor and latents_mean; diffusers' pipelines read one of them")
    shift = 0.0 if shift is None and mean is None else mean if shift is None else shift
    scale = o["scaling_factor"] / torch.tensor(1.0 if std is None else std)
    return {
        name: torch.as_tensor(value, dtype=torch.float32).expand(channels).reshape(-1, 1, 1)
        for name, value in (("latent_shift", shift), ("latent_scale", scale))
    }


# ---- ours -> theirs


def to_theirs(model: Autoencoder, size: int, reads: Iterable[str] = STATISTICS) -> tuple[Options, Weights]:
    """config.json and weights; size of the pictures.

    config.json can hold one number of each statistic, and a pipeline may read only some (`reads`); others are folded
    into the 1x1 convolutions.
    """
    config, state = model.config, dict(model.state_dict())
    _check(config)
    if isinstance(config.bottleneck, IdentityConfig):
        config, state = _with_variance(config, state)
    shift, scale = state.pop("latent_shift").flatten(), state.pop("latent_scale").flatten()
    is_vq = isinstance(config.bottleneck, VQConfig)
    reads = set(reads) - ({"shift_factor"} if is_vq else set())
    held = [(value == value[0]).all() and (value[0] == default or name in reads)
            for name, value, default in (("shift_factor", shift, 0), ("scaling_factor", scale, 1))]  # fmt: skip
    if not all(held):
        state = _folded(state, shift, scale, is_vq)
        shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
    options = _options(config) | {"sample_size": size, "scaling_factor": _short(scale[0])}
    if not is_vq:
        options["shift_factor"] = _short(shift[0]) or None
    return options, folders.to_theirs(state, _places(config))


def _short(x: Tensor) -> float:
    """The number with the fewest digits that float32 reads as x."""
    return float(str(x.numpy()))


def _check(config: AutoencoderConfig) -> None:
    if not config.channel_mult:
        raise UserError("the run works on pixels; there is no autoencoder to export")
    if config.inner_channels not in (0, config.z_channels) and not isinstance(config.bottleneck, VQConfig):
        raise UserError(
            f"autoencoder.inner_channels is {config.inner_channels} and z_channels {config.z_channels}; diffusers' "
            f"AutoencoderKL cannot express two widths"
        )


def _options(config: AutoencoderConfig) -> Options:
    attend = [level in config.attention_levels for level in range(len(config.channel_mult))]
    options = {
        "_class_name": "AutoencoderKL", "_diffusers_version": folders.VERSION,
        "in_channels": 3, "out_channels": 3, "act_fn": "silu", "latent_channels": config.z_channels,
        "block_out_channels": folders.widths(config.channels, config.channel_mult, "autoencoder"),
        "layers_per_block": config.num_res_blocks, "norm_num_groups": config.norm_groups,
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attend],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in attend[::-1]],
        "mid_block_add_attention": config.mid_attention,
    }  # fmt: skip
    if isinstance(config.bottleneck, VQConfig):
        options |= {"_class_name": "VQModel", "num_vq_embeddings": config.bottleneck.codebook_size}
        options |= {"vq_embed_dim": config.z_channels, "latent_channels": config.inner_channels or config.z_channels}
    return options


def _with_variance(config: AutoencoderConfig, state: Weights) -> tuple[AutoencoderConfig, Weights]:
    """An autoencoder without a posterior as one whose posterior is 3e-7 wide: zeros for the missing rows."""
    conv, quant = state["quant_conv.weight"], state["quant_conv.bias"]
    state = state | {
        "quant_conv.weight": torch.block_diag(conv[..., 0, 0], torch.zeros_like(conv[..., 0, 0]))[..., None, None],
        "quant_conv.bias": torch.cat([quant, torch.full_like(quant, -30)]),
    }
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name])])
    return replace(config, bottleneck=KLConfig()), state


def _folded(state: Weights, shift: Tensor, scale: Tensor, is_vq: bool) -> Weights:
    """The weights of an autoencoder whose latent is (latent - shift)·scale [C], in float64 on the way."""
    if is_vq and not (scale == scale[0]).all():
        raise UserError("the latents are normalised channel by channel, which moves a codebook's nearest neighbours; "
                        "diffusers' VQModel has no place for that")  # fmt: skip
    shift, scale, channels = shift.double(), scale.double(), len(shift)
    quant, bias = state["quant_conv.weight"].double(), state["quant_conv.bias"].double()
    back, start = state["post_quant_conv.weight"].double(), state["post_quant_conv.bias"].double()
    new = {
        "quant_conv.weight": torch.cat([quant[:channels] * scale[:, None, None, None], quant[channels:]]),
        "quant_conv.bias": torch.cat([(bias[:channels] - shift) * scale, bias[channels:]]),
        "post_quant_conv.weight": back / scale[:, None, None],
        "post_quant_conv.bias": start + back[..., 0, 0] @ shift,
    }
    if is_vq:
        new["quantize.embedding.weight"] = (state["quantize.embedding.weight"].double() - shift) * scale
    elif len(bias) > channels:
        new["quant_conv.bias"][channels:] += 2 * torch.log(scale.abs())  # of the log-variance
    return state | {name: value.to(state[name].dtype) for name, value in new.items()}


# ---- names


def _places(config: AutoencoderConfig) -> dict[str, Place]:
    with torch.device("meta"):
        names = list(Autoencoder(config).state_dict())
    return {name: _place(name, len(config.channel_mult)) for name in names if name not in ("latent_shift", "latent_scale")}


def _place(name: str, levels: int) -> Place:
    parts = name.split(".")
    attention = "attn" in parts or "attn_1" in parts
    if parts[1] == "up":
        parts[2] = str(levels - 1 - int(parts[2]))  # diffusers counts them as they are run
    words = WORDS | IN_ATTENTION if attention else WORDS
    linear = attention and parts[-1] == "weight" and parts[-2] != "norm"
    return Place((".".join(words.get(part, part) for part in parts),), -2 if linear else 0)
