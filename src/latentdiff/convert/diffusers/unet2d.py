"""UNet2DConditionModel and UNet2DModel of diffusers <-> UNet."""

from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert.diffusers import model_folder, unet_options
from latentdiff.convert.diffusers.model_folder import Options
from latentdiff.convert.diffusers.unet_options import CONDITION_MODEL, MODEL
from latentdiff.convert.key_map import KeyMap, LayerKeys, Weights, build_key_map, shapes_of, to_src
from latentdiff.diffusion.blocks import ResBlock, SelfAttention, Transformer
from latentdiff.diffusion.unet import UNet, UNetConfig

LAYERS = {  # names inside the layers: latentdiff -> diffusers
    ResBlock: LayerKeys({"emb": "time_emb_proj", "skip": "conv_shortcut"}),
    SelfAttention: LayerKeys({"norm": "group_norm", "qkv": ("to_q", "to_k", "to_v"), "out": "to_out.0"}),
    Transformer: LayerKeys(
        {"blocks": "transformer_blocks", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
        | {"fc1": "net.0.proj", "fc2": "net.2"},
        extra_dims={"proj_in.weight": 2, "proj_out.weight": 2},  # or none, with use_linear_projection
    ),
}


def unet_key_map(unet: UNet) -> KeyMap:
    """Both number the blocks of a level; in diffusers a level ends with the layer that changes the resolution."""
    prefixes = {
        "time.0": "time_embedding.linear_1", "time.2": "time_embedding.linear_2", "conv_in": "conv_in",
        "norm_out": "conv_norm_out", "conv_out": "conv_out", "middle.res1": "mid_block.resnets.0",
        "middle.attention": "mid_block.attentions.0", "middle.res2": "mid_block.resnets.1",
    }  # fmt: skip
    if unet.vector is not None:
        prefixes["vector"] = "class_embedding"
    for way, blocks in (("down", unet.down), ("up", unet.up)):
        for k, block in enumerate(blocks):
            level, j = divmod(k, unet.config.num_res_blocks + 1)
            names = {"res": f"resnets.{j}", "attention": f"attentions.{j}", "resample": f"{way}samplers.0"}
            prefixes |= {f"{way}.{k}.{name}": f"{way}_blocks.{level}.{names[name]}" for name in block}
    return build_key_map(unet, prefixes, LAYERS)


class ImportedUNet(NamedTuple):
    config: UNetConfig
    weights: Weights
    in_channels: int
    out_channels: int
    context_dim: int = 0  # 0: no cross-attention
    vector_dim: int = 0  # 0: nothing is added to the time embedding
    label_table: Tensor | None = None  # class vectors [classes, vector_dim]
    size: tuple[int, int] | None = None  # height and width of the latent


def from_diffusers(config: Options, state: Weights) -> ImportedUNet:
    """config.json and weights of a UNet2DConditionModel or a UNet2DModel."""
    kind, state = config["_class_name"], dict(state)
    o, unet_config = unet_options.from_diffusers(config)
    vector_dim, label_table = 0, None
    if o["class_embed_type"] == "simple_projection":
        vector_dim = o["projection_class_embeddings_input_dim"]
    elif o["class_embed_type"] == "identity" or o["num_class_embeds"] is not None:  # added without a linear layer
        vector_dim = 4 * o["block_out_channels"][0]
        label_table = state.pop("class_embedding.weight", None)
        state |= {"class_embedding.weight": torch.eye(vector_dim), "class_embedding.bias": torch.zeros(vector_dim)}
    first = "time_embedding.linear_1.weight"
    if not o["flip_sin_to_cos"] and first in state:  # its input has the sines before the cosines
        half = state[first].shape[1] // 2
        sines, cosines, rest = state[first].split([half, half, state[first].shape[1] - 2 * half], dim=1)
        state[first] = torch.cat([cosines, sines, rest], dim=1)
    context_dim = unet_options.common_value(o, "cross_attention_dim") if kind == CONDITION_MODEL else 0
    in_channels, out_channels = o["in_channels"], o["out_channels"]
    with torch.device("meta"):
        unet = UNet(unet_config, in_channels, out_channels, context_dim or None, vector_dim or None)
    weights = model_folder.import_weights(state, unet_key_map(unet), shapes_of(unet), kind)
    size = o["sample_size"]
    size = (size, size) if isinstance(size, int) else tuple(size) if size else None
    return ImportedUNet(unet_config, weights, in_channels, out_channels, context_dim, vector_dim, label_table, size)


def to_diffusers(unet: UNet, size: tuple[int, int], label_table: Tensor | None = None) -> tuple[Options, Weights]:
    """config.json and weights.

    Args:
        size: height and width of the latent.
        label_table: class vectors [classes, D], if the U-Net has some. Their projections are what diffusers adds to
            the time embedding.
    """
    kind = CONDITION_MODEL if unet.context_dim else MODEL
    options = unet_options.to_diffusers(kind, unet, size)
    weights = to_src(dict(unet.state_dict()), unet_key_map(unet))
    if label_table is not None:
        weight, bias = (weights.pop(f"class_embedding.{name}") for name in ("weight", "bias"))
        projected = label_table.double() @ weight.double().T + bias.double()
        weights["class_embedding.weight"] = projected.to(weight.dtype)
        options["num_class_embeds"] = len(label_table)
    elif unet.vector is not None:
        if kind == MODEL:
            raise UserError(f"the U-Net has a vector input without classes, which diffusers' {MODEL} does not have")
        options |= {"class_embed_type": "simple_projection"}
        options |= {"projection_class_embeddings_input_dim": unet.vector.in_features}
    return options, weights
