"""AutoencoderKL and VQModel of diffusers <-> Autoencoder."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.blocks import Attention, ResBlock
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import model_folder
from latentdiff.convert.diffusers.model_folder import Options
from latentdiff.convert.key_map import KeyMap, LayerKeys, Weights, build_key_map, shapes_of, to_src

SHARED = {
    "block_out_channels": (64,), "down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",),
    "layers_per_block": 1, "norm_num_groups": 32, "mid_block_add_attention": True, "sample_size": 32,
    "scaling_factor": 0.18215,
}  # fmt: skip
DEFAULTS = {  # of diffusers, for options that config.json does not have
    "AutoencoderKL": SHARED
    | {"latent_channels": 4, "shift_factor": None, "latents_mean": None, "latents_std": None}
    | {"use_quant_conv": True, "use_post_quant_conv": True},
    "VQModel": SHARED | {"latent_channels": 3, "num_vq_embeddings": 256, "vq_embed_dim": None},
}
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": ("silu", "swish"), "norm_type": "group"}
FIXED |= {"lookup_from_codebook": False}
IGNORED = ("force_upcast",)  # concerns half precision only
FIELDS = {  # diffusers -> AutoencoderConfig
    "layers_per_block": "num_res_blocks", "mid_block_add_attention": "mid_attention", "norm_num_groups": "norm_groups",
}  # fmt: skip
LATENT_STATS = ("scaling_factor", "shift_factor")
HAS_ATTENTION = {  # type of block -> whether it has attention
    "DownEncoderBlock2D": False, "UpDecoderBlock2D": False, "AttnDownEncoderBlock2D": True, "AttnUpDecoderBlock2D": True
}  # fmt: skip
LINEAR = {f"{name}.weight": -2 for name in ("q", "k", "v", "proj_out")}  # they are 1x1 convolutions in latentdiff
LAYERS = {  # names inside the layers: latentdiff -> diffusers
    ResBlock: LayerKeys({"nin_shortcut": "conv_shortcut"}),
    Attention: LayerKeys(
        {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}, extra_dims=LINEAR
    ),
}


def vae_key_map(model: Autoencoder) -> KeyMap:
    prefixes = {name: name for name in ("quant_conv", "post_quant_conv", "quantize")}
    levels = range(len(model.config.channel_mult))
    for half, way, network in (("encoder", "down", model.encoder), ("decoder", "up", model.decoder)):
        prefixes |= {f"{half}.{name}": f"{half}.{name}" for name in ("conv_in", "conv_out")}
        prefixes |= {f"{half}.mid.block_{k + 1}": f"{half}.mid_block.resnets.{k}" for k in (0, 1)}
        prefixes[f"{half}.mid.attn_1"] = f"{half}.mid_block.attentions.0"
        prefixes[f"{half}.norm_out"] = f"{half}.conv_norm_out"
        for i in levels:
            dst = f"{half}.{way}.{i}"
            src = f"{half}.{way}_blocks.{i if way == 'down' else levels[-1] - i}"  # diffusers: in the order of forward
            prefixes[f"{dst}.{way}sample"] = f"{src}.{way}samplers.0"
            for j in range(len(getattr(network, way)[i].block)):
                prefixes |= {f"{dst}.block.{j}": f"{src}.resnets.{j}", f"{dst}.attn.{j}": f"{src}.attentions.{j}"}
    return build_key_map(model, prefixes, LAYERS)


def from_diffusers(config: Options, state: Weights) -> tuple[AutoencoderConfig, Weights, int]:
    """config.json and weights of an AutoencoderKL or a VQModel; also returns the size of the images."""
    kind = config["_class_name"]
    o = model_folder.read_options(config, DEFAULTS[kind], FIXED, IGNORED)
    autoencoder_config = _read_config(o)
    with torch.device("meta"):
        model = Autoencoder(autoencoder_config)
    shapes = shapes_of(model)
    for name in ("quant_conv", "post_quant_conv"):
        if not o.get(f"use_{name}", True):  # equivalent: an identity convolution
            c = shapes[f"{name}.weight"][0]
            state = state | {f"{name}.weight": torch.eye(c)[..., None, None], f"{name}.bias": torch.zeros(c)}
    weights = model_folder.import_weights(state, vae_key_map(model), shapes, kind)
    size = o["sample_size"] if isinstance(o["sample_size"], int) else min(o["sample_size"])
    return autoencoder_config, weights | _read_latent_stats(o, autoencoder_config.z_channels), size


def _read_config(o: Options) -> AutoencoderConfig:
    config = AutoencoderConfig(
        channels=o["block_out_channels"][0],
        channel_mult=model_folder.channel_mult(o["block_out_channels"]),
        attention_levels=model_folder.levels_with_attention(o, HAS_ATTENTION),
        z_channels=o["latent_channels"],
        **{dst: o[src] for src, dst in FIELDS.items()},
    )
    if "num_vq_embeddings" not in o:
        return config
    width = o["vq_embed_dim"] or o["latent_channels"]
    inner = {} if width == config.z_channels else {"z_channels": width, "inner_channels": config.z_channels}
    return replace(config, bottleneck=VQConfig(codebook_size=o["num_vq_embeddings"]), **inner)


def _read_latent_stats(o: Options, channels: int) -> Weights:
    """Shift and scale [C, 1, 1] of z = (latent - shift)·scale."""
    shift, mean, std = (o.get(name) for name in ("shift_factor", "latents_mean", "latents_std"))
    if shift is not None and mean is not None:
        raise UserError("config.json has both shift_factor and latents_mean; remove the one that the pipeline ignores")
    shift = next((value for value in (shift, mean) if value is not None), 0.0)
    scale = o["scaling_factor"] / torch.tensor(1.0 if std is None else std)
    return {
        name: torch.as_tensor(value, dtype=torch.float32).expand(channels).reshape(-1, 1, 1)
        for name, value in (("latent_shift", shift), ("latent_scale", scale))
    }


def to_diffusers(model: Autoencoder, size: int, stats: Iterable[str] = LATENT_STATS) -> tuple[Options, Weights]:
    """config.json and weights.

    Args:
        size: of the images.
        stats: the options for the normalization of the latents that the pipeline reads. config.json has one number for
            each; a normalization that these cannot express is folded into the 1x1 convolutions.
    """
    config, state = model.config, dict(model.state_dict())
    _check_export(config)
    keys = vae_key_map(model)
    shift, scale = state.pop("latent_shift").flatten(), state.pop("latent_scale").flatten()
    if isinstance(config.bottleneck, IdentityConfig):
        config, state = _add_posterior(config, state)
    is_vq = isinstance(config.bottleneck, VQConfig)
    stats = set(stats) - ({"shift_factor"} if is_vq else set())
    defaults = (("shift_factor", shift, 0), ("scaling_factor", scale, 1))
    if not all((x == x[0]).all() and (x[0] == default or name in stats) for name, x, default in defaults):
        state = _fold_latent_stats(state, shift, scale, is_vq)
        shift, scale = torch.zeros_like(shift), torch.ones_like(scale)
    options = _write_options(config) | {"sample_size": size, "scaling_factor": _shortest_float(scale[0])}
    if not is_vq:
        options["shift_factor"] = _shortest_float(shift[0]) or None
    return options, to_src(state, keys)


def _shortest_float(x: Tensor) -> float:
    """The number with the fewest digits that is x in float32."""
    return float(str(x.numpy()))


def _check_export(config: AutoencoderConfig) -> None:
    if not config.channel_mult:
        raise UserError("the run is in pixel space; it has no autoencoder to export")
    if config.inner_channels not in (0, config.z_channels) and not isinstance(config.bottleneck, VQConfig):
        raise UserError(
            f"autoencoder.inner_channels is {config.inner_channels}; it must be {config.z_channels}, the same as "
            f"z_channels, in diffusers' AutoencoderKL"
        )


def _write_options(config: AutoencoderConfig) -> Options:
    attention = [level in config.attention_levels for level in range(len(config.channel_mult))]
    options = {
        "_class_name": "AutoencoderKL", "_diffusers_version": model_folder.VERSION,
        "in_channels": 3, "out_channels": 3, "act_fn": "silu", "latent_channels": config.z_channels,
        "block_out_channels": model_folder.block_out_channels(config.channels, config.channel_mult, "autoencoder"),
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attention],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in attention[::-1]],
    } | {src: getattr(config, dst) for src, dst in FIELDS.items()}  # fmt: skip
    if isinstance(config.bottleneck, VQConfig):
        options |= {"_class_name": "VQModel", "num_vq_embeddings": config.bottleneck.codebook_size}
        options |= {"vq_embed_dim": config.z_channels, "latent_channels": config.inner_channels or config.z_channels}
    return options


def _add_posterior(config: AutoencoderConfig, state: Weights) -> tuple[AutoencoderConfig, Weights]:
    """An autoencoder without a posterior as one whose posterior has a standard deviation of 3e-7."""
    conv, bias = state["quant_conv.weight"], state["quant_conv.bias"]
    state = state | {
        "quant_conv.weight": torch.block_diag(conv[..., 0, 0], torch.zeros_like(conv[..., 0, 0]))[..., None, None],
        "quant_conv.bias": torch.cat([bias, torch.full_like(bias, -30)]),
    }
    for name in ("encoder.conv_out.weight", "encoder.conv_out.bias"):
        state[name] = torch.cat([state[name], torch.zeros_like(state[name])])
    return replace(config, bottleneck=KLConfig()), state


def _fold_latent_stats(state: Weights, shift: Tensor, scale: Tensor, is_vq: bool) -> Weights:
    """The weights of an autoencoder with the latent (latent - shift)·scale; shift, scale [C]. Computed in float64."""
    if is_vq and not (scale == scale[0]).all():
        raise UserError(
            "latent_scale differs from channel to channel, which changes the nearest codes of a codebook; diffusers' "
            "VQModel cannot express it"
        )
    shift, scale, channels = shift.double(), scale.double(), len(shift)
    conv, bias = state["quant_conv.weight"].double(), state["quant_conv.bias"].double()
    post_conv, post_bias = state["post_quant_conv.weight"].double(), state["post_quant_conv.bias"].double()
    folded = {
        "quant_conv.weight": torch.cat([conv[:channels] * scale[:, None, None, None], conv[channels:]]),
        "quant_conv.bias": torch.cat([(bias[:channels] - shift) * scale, bias[channels:]]),
        "post_quant_conv.weight": post_conv / scale[:, None, None],
        "post_quant_conv.bias": post_bias + post_conv[..., 0, 0] @ shift,
    }
    if is_vq:
        folded["quantize.embedding.weight"] = (state["quantize.embedding.weight"].double() - shift) * scale
    elif len(bias) > channels:
        folded["quant_conv.bias"][channels:] += 2 * torch.log(scale.abs())  # of the log-variance
    return state | {name: value.to(state[name].dtype) for name, value in folded.items()}
