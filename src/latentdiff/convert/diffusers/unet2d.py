"""UNet2DConditionModel and UNet2DModel of diffusers <-> our UNet."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers import unet_options as unet_options
from latentdiff.convert.diffusers.folder import Options, Place, Weights
from latentdiff.convert.diffusers.unet_options import PLAIN, TEXT
from latentdiff.diffusion.blocks import ResBlock, SelfAttention, Transformer
from latentdiff.diffusion.unet import UNet, UNetConfig

INSIDE = {  # parts of a name inside each kind of layer: ours -> theirs
    ResBlock: {"emb": "time_emb_proj", "skip": "conv_shortcut"},
    SelfAttention: {"norm": "group_norm", "out": "to_out.0"},
    Transformer: {"blocks": "transformer_blocks", "q": "to_q", "k": "to_k", "v": "to_v", "out": "to_out.0"}
    | {"fc1": "net.0.proj", "fc2": "net.2"},
}
CONVOLUTIONS = ("proj_in.weight", "proj_out.weight")  # 1x1 in theirs, unless use_linear_projection


# ---- theirs -> ours


class Imported(NamedTuple):
    config: UNetConfig
    weights: Weights
    in_channels: int
    out_channels: int
    context_dim: int  # 0: no cross-attention
    vector_dim: int  # 0: nothing is added to the time embedding
    table: Tensor | None  # of class vectors [classes, vector_dim]
    size: tuple[int, int] | None  # of the latent

    def network(self) -> UNet:
        """On the meta device."""
        with torch.device("meta"):
            doors = self.context_dim or None, self.vector_dim or None
            return UNet(self.config, self.in_channels, self.out_channels, *doors)


def from_theirs(config: Options, state: Weights) -> Imported:
    """config.json and weights of a UNet2DConditionModel or a UNet2DModel -> what our UNet is made of."""
    kind, state = config["_class_name"], dict(state)
    o = unet_options.read(config)
    vector_dim, table = 0, None
    if o["class_embed_type"] == "simple_projection":
        vector_dim = o["projection_class_embeddings_input_dim"]
    elif o["class_embed_type"] == "identity" or o["num_class_embeds"] is not None:  # vectors that are added as they are
        vector_dim = 4 * o["block_out_channels"][0]
        table = state.pop("class_embedding.weight", None)
        state |= {"class_embedding.weight": torch.eye(vector_dim), "class_embedding.bias": torch.zeros(vector_dim)}
    first = "time_embedding.linear_1.weight"
    if not o["flip_sin_to_cos"] and first in state:  # its columns for sines come before those for cosines
        half = state[first].shape[1] // 2
        sines, cosines, rest = state[first].split([half, half, state[first].shape[1] - 2 * half], dim=1)
        state[first] = torch.cat([cosines, sines, rest], dim=1)
    context_dim = folders.same("cross_attention_dim", o["cross_attention_dim"]) if kind == TEXT else 0
    size = o["sample_size"]
    size = (size, size) if isinstance(size, int) else tuple(size) if size else None
    made = Imported(
        unet_options.from_theirs(kind, o), {}, o["in_channels"], o["out_channels"], context_dim, vector_dim, table, size
    )
    network = made.network()
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    return made._replace(weights=folders.from_theirs(state, _places(network), shapes, kind))


# ---- ours -> theirs


def to_theirs(unet: UNet, size: tuple[int, int], table: Tensor | None = None) -> tuple[Options, Weights]:
    """config.json and weights; size [h, w] of the latent; `table` [classes, D] the vectors of classes, if it has some.

    With a table, what the U-Net makes of them becomes the one that diffusers adds to the time embedding.
    """
    kind = TEXT if unet.context_dim else PLAIN
    options, weights = (
        unet_options.to_theirs(kind, unet, size),
        folders.to_theirs(dict(unet.state_dict()), _places(unet)),
    )
    if table is not None:
        weight, bias = (weights.pop(f"class_embedding.{end}") for end in ("weight", "bias"))
        weights["class_embedding.weight"] = (table.double() @ weight.double().T + bias.double()).to(weight.dtype)
        options["num_class_embeds"] = len(table)
    elif unet.vector is not None:
        if kind == PLAIN:
            raise UserError(f"diffusers' {PLAIN} takes no vectors beside the timestep but those of classes")
        options |= {"class_embed_type": "simple_projection"}
        options |= {"projection_class_embeddings_input_dim": unet.vector.in_features}
    return options, weights


# ---- names


def _places(unet: UNet) -> dict[str, Place]:
    places = {}
    for ours, theirs, layer in _layers(unet):
        words = INSIDE.get(type(layer), {})
        for name, _ in layer.named_parameters():
            inside = ".".join(words.get(part, part) for part in name.split("."))
            names = [f"{theirs}.{inside}"]
            if type(layer) is SelfAttention and name.startswith("qkv"):
                names = [names[0].replace("qkv", part) for part in ("to_q", "to_k", "to_v")]
            axes = 2 if type(layer) is Transformer and name in CONVOLUTIONS else 0
            places[f"{ours}.{name}"] = Place(tuple(names), axes)
    return places


def _layers(unet: UNet) -> Iterator[tuple[str, str, nn.Module]]:
    """Our name, theirs, the layer."""
    yield "time.0", "time_embedding.linear_1", unet.time[0]
    yield "time.2", "time_embedding.linear_2", unet.time[2]
    yield "conv_in", "conv_in", unet.conv_in
    yield "norm_out", "conv_norm_out", unet.norm_out
    yield "conv_out", "conv_out", unet.conv_out
    if unet.vector is not None:
        yield "vector", "class_embedding", unet.vector
    for name, theirs in (("res1", "resnets.0"), ("attention", "attentions.0"), ("res2", "resnets.1")):
        yield f"middle.{name}", f"mid_block.{theirs}", unet.middle[name]
    blocks = unet.config.num_res_blocks
    for k, stage in enumerate(unet.down):  # theirs ends a level with what begins the next in ours
        level, j = divmod(k, blocks + 1)
        words = {"res": f"resnets.{j}", "attention": f"attentions.{j}", "resample": "downsamplers.0"}
        for name, layer in stage.items():
            yield f"down.{k}.{name}", f"down_blocks.{level}.{words[name]}", layer
    for k, stage in enumerate(unet.up):
        level, j = divmod(k, blocks + 1)
        words = {"res": f"resnets.{j}", "attention": f"attentions.{j}", "resample": "upsamplers.0"}
        for name, layer in stage.items():
            yield f"up.{k}.{name}", f"up_blocks.{level}.{words[name]}", layer
