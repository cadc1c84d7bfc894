"""Weights of the original release (CompVis/latent-diffusion) <-> ours: names and shapes.

The original numbers its layers where ours have names, and keeps 1x1 convolutions where ours are linear on tokens. Names
are those inside the U-Net (input_blocks.0.0.weight, ...) and the text encoder (transformer.token_emb.weight, ...); in
front of those of a whole model stands UNET or CONDITION. The names of the autoencoder are ours.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from latentdiff.diffusion.blocks import Downsample, ResBlock, SelfAttention, Transformer
from latentdiff.diffusion.schedule import BETAS, Schedule
from latentdiff.diffusion.unet import UNet
from latentdiff.model import LatentDiffusion

Weights = dict[str, Tensor]
UNET, CONDITION, FIRST_STAGE, AVERAGE = (
    "model.diffusion_model.",
    "cond_stage_model.",
    "first_stage_model.",
    "model_ema.",
)


# ---- the U-Net


INSIDE = {  # parts of a name inside each kind of layer: ours -> the original's
    ResBlock: {"norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1"}
    | {"norm2": "out_layers.0", "conv2": "out_layers.3", "skip": "skip_connection"},
    SelfAttention: {"out": "proj_out"},
    Transformer: {"blocks": "transformer_blocks", "fc1": "net.0.proj", "fc2": "net.2"}
    | {"q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"},
    Downsample: {"conv": "op"},
}
AXES = {  # axes of size 1 at the end of the original's weights, which are convolutions
    SelfAttention: {"qkv.weight": 1, "out.weight": 1},
    Transformer: {"proj_in.weight": 2, "proj_out.weight": 2},
}


class Place(NamedTuple):
    """Where the original keeps one of our parameters, and how."""

    name: str  # the original's
    axes: int = 0  # of size 1 that its shape has more
    heads: int = 0  # its rows are ordered [heads, 3, d], ours [3, heads, d]; 0: any other parameter

    def shape(self, ours: torch.Size) -> list[int]:
        return [*ours, *[1] * self.axes]

    def to_ours(self, value: Tensor) -> Tensor:
        value = value.reshape(value.shape[: value.ndim - self.axes])
        return _regroup(value, self.heads, 3) if self.heads else value

    def to_theirs(self, value: Tensor) -> Tensor:
        value = _regroup(value, 3, self.heads) if self.heads else value
        return value.reshape(self.shape(value.shape))


def unet_from_original(state: Weights, unet: UNet) -> Weights:
    """The original's weights in our names and shapes; `unet` may stand on the meta device."""
    return {name: place.to_ours(state[place.name]) for name, place in unet_places(unet).items()}


def unet_to_original(state: Weights, unet: UNet) -> Weights:
    """The inverse of unet_from_original."""
    return {place.name: place.to_theirs(state[name]) for name, place in unet_places(unet).items()}


def unet_places(unet: UNet) -> dict[str, Place]:
    """Where the original keeps each of our parameters, but for the vector door: there it has a table of labels."""
    places = {}
    for ours, theirs, layer in _layers(unet):
        for name, _ in layer.named_parameters():
            inside = ".".join(INSIDE.get(type(layer), {}).get(part, part) for part in name.split("."))
            axes = AXES.get(type(layer), {}).get(name, 0)
            heads = layer.heads if type(layer) is SelfAttention and name.startswith("qkv") else 0
            places[f"{ours}.{name}"] = Place(f"{theirs}.{inside}", axes, heads)
    return places


def _layers(unet: UNet) -> Iterator[tuple[str, str, nn.Module]]:
    """Our name, the original's, the layer; the original counts layers by their place in a stage."""
    yield "time", "time_embed", unet.time
    yield "conv_in", "input_blocks.0.0", unet.conv_in
    yield "norm_out", "out.0", unet.norm_out
    yield "conv_out", "out.2", unet.conv_out
    stages = [(f"down.{k}", f"input_blocks.{k + 1}", stage) for k, stage in enumerate(unet.down)]
    stages += [("middle", "middle_block", unet.middle)]
    stages += [(f"up.{k}", f"output_blocks.{k}", stage) for k, stage in enumerate(unet.up)]
    for ours, theirs, stage in stages:
        for j, (name, layer) in enumerate(stage.items()):
            yield f"{ours}.{name}", f"{theirs}.{j}", layer


def _regroup(rows: Tensor, outer: int, inner: int) -> Tensor:
    """Rows ordered [outer, inner, d] -> [inner, outer, d]."""
    return rows.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)


# ---- the conditions


def condition_places(part: nn.Module) -> dict[str, Place]:
    """Where the original keeps the parameters of a condition; a text's or layout's transformer, or names that agree."""
    names = [name for name, _ in part.named_parameters()]
    if hasattr(part, "blocks"):
        theirs = _text_names(len(part.blocks))
        return {name: Place(theirs[name]) for name in names}
    return {name: Place(name) for name in names}


OUTER = {"tokens": "token_emb", "positions": "pos_emb.emb", "norm": "norm"}
BLOCK = {  # one of our blocks is two of the original's layers
    "norm1": "{attention}.0",
    "attention.q": "{attention}.1.to_q",
    "attention.k": "{attention}.1.to_k",
    "attention.v": "{attention}.1.to_v",
    "attention.out": "{attention}.1.to_out",
    "norm2": "{mlp}.0",
    "mlp.0": "{mlp}.1.net.0.0",
    "mlp.2": "{mlp}.1.net.2",
}


def text_from_original(state: Weights) -> Weights:
    """The original's text encoder in our names, without its to_logits, which nothing reads."""
    names = _text_names(sum(name.endswith(".to_q.weight") for name in state))
    return {ours: state[theirs] for ours, theirs in names.items() if theirs in state}


def text_to_original(state: Weights) -> Weights:
    """The inverse of text_from_original, with a to_logits of zeros, since the original wants one."""
    names = _text_names(sum(name.endswith(".attention.q.weight") for name in state))
    vocab_size, dim = state["tokens.weight"].shape
    theirs = {"transformer.to_logits.weight": torch.zeros(vocab_size, dim)}
    theirs |= {"transformer.to_logits.bias": torch.zeros(vocab_size)}
    return theirs | {theirs: state[ours] for ours, theirs in names.items() if ours in state}


def _text_names(depth: int) -> dict[str, str]:
    """Our parameter -> the original's; some of the biases exist in neither."""
    modules = dict(OUTER)
    for i in range(depth):
        numbers = {"attention": f"attn_layers.layers.{2 * i}", "mlp": f"attn_layers.layers.{2 * i + 1}"}
        modules |= {f"blocks.{i}.{ours}": theirs.format(**numbers) for ours, theirs in BLOCK.items()}
    ends = ("weight", "bias")
    return {f"{ours}.{end}": f"transformer.{theirs}.{end}" for ours, theirs in modules.items() for end in ends}


# ---- whole models


LABELS = "conditioner.parts.{}.embedding.weight"  # ours; with the vector door the original keeps it in the U-Net
LABEL_TABLE = UNET + "label_emb.weight"


def model_places(model: LatentDiffusion, new_order: bool = False) -> dict[str, Place]:
    """Where a checkpoint of the original keeps each of our parameters; new_order: its rows of qkv are as ours.

    The vector door is a table of labels there, as wide as the time embedding; ours has a linear map behind the table.
    """
    places = {f"unet.{name}": place._replace(name=UNET + place.name) for name, place in unet_places(model.unet).items()}
    for i, part in enumerate(model.conditioner.parts):
        for name, place in condition_places(part).items():
            theirs = LABEL_TABLE if part.vector_dim else CONDITION + place.name
            places[f"conditioner.parts.{i}.{name}"] = place._replace(name=theirs)
    return {name: place._replace(heads=0) for name, place in places.items()} if new_order else places


def average_name(name: str) -> str:
    """Where a checkpoint keeps the average of a weight: without `model.` and without any dot."""
    return AVERAGE + name.removeprefix("model.").replace(".", "")


def schedule_buffers(schedule: Schedule) -> Weights:
    """The twelve tables [T] that every checkpoint holds, computed in float64 and rounded once."""
    betas = BETAS[schedule.config.kind](schedule.config)
    a = np.cumprod(1 - betas)
    before = np.append(1.0, a[:-1])
    variance = betas * (1 - before) / (1 - a)
    tables = {
        "betas": betas,
        "alphas_cumprod": a,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": np.sqrt(a),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - a),
        "log_one_minus_alphas_cumprod": np.log(1 - a),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / a),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / a - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(before) / (1 - a),
        "posterior_mean_coef2": (1 - before) * np.sqrt(1 - betas) / (1 - a),
    }
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}


def unused_head(state: Weights) -> Weights:
    """The to_logits of a text encoder, which the original wants and nothing reads, as zeros."""
    table = state.get(f"{CONDITION}transformer.token_emb.weight")
    if table is None:
        return {}
    head = f"{CONDITION}transformer.to_logits."
    return {f"{head}weight": torch.zeros_like(table), f"{head}bias": table.new_zeros(len(table))}


def vector_table(ours: Weights) -> Weights:
    """The table of labels behind the vector door: ours and the linear map behind it in one."""
    weight, bias = ours.get("unet.vector.weight"), ours.get("unet.vector.bias")
    if weight is None:
        return {}
    return {LABEL_TABLE: ours[LABELS.format(0)] @ weight.T + bias}
