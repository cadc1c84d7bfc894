"""Key maps of the original release (CompVis/latent-diffusion), and the other tensors of its checkpoints.

The original numbers its layers where latentdiff names them, and has 1x1 convolutions instead of linear layers.
The names inside the autoencoder are the same in both.
"""

import numpy as np
import torch
from torch import nn

from latentdiff.conditioning.condition import ConditionModule
from latentdiff.convert.key_map import Entry, KeyMap, LayerKeys, Weights, add_prefix, build_key_map
from latentdiff.diffusion.blocks import Downsample, ResBlock, SelfAttention, Transformer
from latentdiff.diffusion.schedule import BETAS, Schedule
from latentdiff.diffusion.unet import UNet
from latentdiff.layers import Attention
from latentdiff.model import LatentDiffusion

UNET, CONDITION, FIRST_STAGE = "model.diffusion_model.", "cond_stage_model.", "first_stage_model."  # prefixes
EMA = "model_ema."
LABEL_TABLE = UNET + "label_emb.weight"
TO_LOGITS = CONDITION + "transformer.to_logits."  # an output head of the text encoder that is never used
ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v"}
LAYERS = {  # names inside the layers: latentdiff -> original
    ResBlock: LayerKeys(
        {"norm1": "in_layers.0", "conv1": "in_layers.2", "emb": "emb_layers.1", "norm2": "out_layers.0",
         "conv2": "out_layers.3", "skip": "skip_connection"}
    ),
    SelfAttention: LayerKeys(
        {"out": "proj_out"}, extra_dims={"qkv.weight": 1, "out.weight": 1}, by_head=("qkv.weight", "qkv.bias")
    ),
    Transformer: LayerKeys(
        ATTENTION | {"out": "to_out.0", "blocks": "transformer_blocks", "fc1": "net.0.proj", "fc2": "net.2"},
        extra_dims={"proj_in.weight": 2, "proj_out.weight": 2},
    ),
    Downsample: LayerKeys({"conv": "op"}),
    Attention: LayerKeys(ATTENTION | {"out": "to_out"}),  # of the text encoder
}  # fmt: skip


def unet_key_map(unet: UNet) -> KeyMap:
    """All parameters of a U-Net but those of `vector`: the original has a label table in their place."""
    prefixes = {"time": "time_embed", "conv_in": "input_blocks.0.0", "norm_out": "out.0", "conv_out": "out.2"}
    blocks = [("middle", "middle_block", unet.middle)]
    blocks += [(f"down.{k}", f"input_blocks.{k + 1}", block) for k, block in enumerate(unet.down)]
    blocks += [(f"up.{k}", f"output_blocks.{k}", block) for k, block in enumerate(unet.up)]
    for dst, src, block in blocks:
        prefixes |= {f"{dst}.{name}": f"{src}.{j}" for j, name in enumerate(block)}
    return build_key_map(unet, prefixes, LAYERS)


def text_key_map(encoder: nn.Module) -> KeyMap:
    """The transformer of a Text or Layout condition; one of its blocks is two layers of the original."""
    prefixes = {"tokens": "transformer.token_emb", "positions": "transformer.pos_emb.emb", "norm": "transformer.norm"}
    for i in range(len(encoder.blocks)):
        attention, mlp = (f"transformer.attn_layers.layers.{k}" for k in (2 * i, 2 * i + 1))
        prefixes |= {
            f"blocks.{i}.norm1": f"{attention}.0", f"blocks.{i}.attention": f"{attention}.1",
            f"blocks.{i}.norm2": f"{mlp}.0",
            f"blocks.{i}.mlp.0": f"{mlp}.1.net.0.0", f"blocks.{i}.mlp.2": f"{mlp}.1.net.2",
        }  # fmt: skip
    return build_key_map(encoder, prefixes, LAYERS)


def model_key_map(model: LatentDiffusion, new_attention_order: bool = False) -> KeyMap:
    """All parameters of a diffusion model; new_attention_order: qkv is ordered as in latentdiff."""
    keys = add_prefix(unet_key_map(model.unet), "unet.", UNET)
    if new_attention_order:
        keys = {name: entry._replace(heads=0) for name, entry in keys.items()}
    for i, part in enumerate(model.conditioner.parts):
        keys |= add_prefix(condition_key_map(part), f"conditioner.parts.{i}.", "")
    return keys


def condition_key_map(part: ConditionModule) -> KeyMap:
    """All parameters of a condition; a label table is a part of the original's U-Net if it is a vector input."""
    if hasattr(part, "blocks"):
        return add_prefix(text_key_map(part), "", CONDITION)
    return {n: Entry((LABEL_TABLE if part.vector_dim else CONDITION + n,)) for n, _ in part.named_parameters()}


def ema_name(name: str) -> str:
    """The name under which a checkpoint stores the EMA of a weight: without `model.` and without dots."""
    return EMA + name.removeprefix("model.").replace(".", "")


def unused_head(state: Weights) -> Weights:
    """The output head of the text encoder, which the original's code loads and never uses, as zeros."""
    table = state.get(f"{CONDITION}transformer.token_emb.weight")
    if table is None:
        return {}
    return {f"{TO_LOGITS}weight": torch.zeros_like(table), f"{TO_LOGITS}bias": table.new_zeros(len(table))}


def label_table(weights: Weights) -> Weights:
    """The original's label table, which is as wide as the time embedding: the table and linear layer of latentdiff."""
    if "unet.vector.weight" not in weights:
        return {}
    table = weights["conditioner.parts.0.embedding.weight"]
    return {LABEL_TABLE: table @ weights["unet.vector.weight"].T + weights["unet.vector.bias"]}


def schedule_buffers(schedule: Schedule) -> Weights:
    """The twelve tables [T] of the noise schedule in every checkpoint, computed in float64 and rounded once."""
    betas = BETAS[schedule.config.kind](schedule.config)
    a = np.cumprod(1 - betas)
    a_prev = np.append(1.0, a[:-1])
    variance = betas * (1 - a_prev) / (1 - a)
    tables = {
        "betas": betas,
        "alphas_cumprod": a,
        "alphas_cumprod_prev": a_prev,
        "sqrt_alphas_cumprod": np.sqrt(a),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1 - a),
        "log_one_minus_alphas_cumprod": np.log(1 - a),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / a),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1 / a - 1),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(a_prev) / (1 - a),
        "posterior_mean_coef2": (1 - a_prev) * np.sqrt(1 - betas) / (1 - a),
    }
    return {name: torch.tensor(table, dtype=torch.float32) for name, table in tables.items()}
