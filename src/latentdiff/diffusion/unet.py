"""The U-Net of the paper (sec. 3.3): down, middle, up, under a timestep, with three doors for conditions."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.diffusion.blocks import (
    Downsample,
    ResBlock,
    SelfAttention,
    Stage,
    Transformer,
    TransformerBlock,
    Upsample,
    double,
    fit,
    halve,
    same,
)
from latentdiff.layers import timestep_embedding, zero


@dataclass(frozen=True)
class UNetConfig:
    channels: int = 320  # the unit of width; the time embedding is four times as wide
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each level in multiples of channels
    num_res_blocks: int = 2  # residual blocks per level on the way down; one more on the way up
    attention_levels: tuple[int, ...] = (0, 1, 2)  # levels with attention, 0 the finest; the middle always has it
    num_heads: int = 8  # of every attention, unless head_channels is set
    head_channels: int = 0  # if above 0: heads = width / head_channels
    transformer_depth: int = 1  # transformer blocks at every place with attention to a context
    dropout: float = 0.0  # inside the residual blocks
    scale_shift_norm: bool = False  # the timestep scales and shifts the second norm; otherwise it is added before it
    resblock_updown: bool = False  # residual blocks change the size; otherwise convolutions do
    norm_groups: int = 32  # of every GroupNorm
    pos_embed: bool = False  # attention is told the places, as sines: "above" is learnt far sooner; not as released
    patch_size: int = (
        1  # side of the squares that the first level takes as one place: for pixels, which are many; not as released
    )
    gradient_checkpointing: bool = (
        False  # stages are computed again in the backward pass: far less memory, a third more time
    )

    def heads(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return width // self.head_channels if self.head_channels else self.num_heads


class UNet(nn.Module):
    """z_t [B, C, h, w], t [B] (whole or not), cond -> [B, out_channels, h, w]; concat channels count in in_channels.

    h and w must be multiples of config.patch_size.
    """

    def __init__(
        self,
        config: UNetConfig,
        in_channels: int,
        out_channels: int,
        context_dim: int | None = None,
        vector_dim: int | None = None,
    ) -> None:
        super().__init__()
        _check(config)
        self.config, self.context_dim = config, context_dim
        layers = Layers(config, context_dim)
        width, c_emb = config.channels, layers.c_emb
        self.time = nn.Sequential(nn.Linear(width, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.vector = nn.Linear(vector_dim, c_emb) if vector_dim else None
        self.conv_in = nn.Conv2d(in_channels * config.patch_size**2, width, 3, padding=1)
        self.down, skips = layers.down(width)
        self.middle = layers.middle(skips[-1])
        self.up = layers.up(skips)
        c = layers.widths[0]
        self.norm_out = nn.GroupNorm(config.norm_groups, c)
        self.conv_out = zero(nn.Conv2d(c, out_channels * config.patch_size**2, 3, padding=1))

    def forward(self, z_t: Tensor, t: Tensor, cond: Cond = Cond(), middle: list | None = None) -> Tensor:  # noqa: B008
        """middle: a list that is given what the middle made, [B, C, h / 2^n, w / 2^n]."""
        assert not self.context_dim or cond.context is not None, "cond.context is missing; this U-Net attends to it"
        emb = self.embed(t, cond.vector, z_t.dtype)
        self.check(*z_t.shape[2:])
        h = z_t if cond.concat is None else torch.cat([z_t, cond.concat], dim=1)
        h = self.conv_in(F.pixel_unshuffle(h, self.config.patch_size))
        skips = [h]
        for stage in self.down:
            h = self.run(stage, h, emb, cond)
            skips.append(h)
        h = self.run(self.middle, h, emb, cond)
        if middle is not None:
            middle.append(h)
        for stage in self.up:
            skip = skips.pop()
            h = self.run(stage, torch.cat([fit(h, skip), skip], dim=1), emb, cond)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), self.config.patch_size)

    def check(self, height: int, width: int) -> None:
        """Refuse a latent, or a tile of one, that patches do not fill."""
        if height % self.config.patch_size or width % self.config.patch_size:
            raise UserError(
                f"unet.patch_size is {self.config.patch_size}; it must divide the latent's sides, {height}x{width}"
            )

    def hold(self, cond: Cond) -> Cond:
        """The condition with its context as keys and values, for many calls with the same one: they are made once."""
        if not self.context_dim:
            return cond
        attend = [block.attn2 for block in self.modules() if isinstance(block, TransformerBlock)]
        return replace(cond, context={layer: layer.hold(cond.context) for layer in attend})

    def run(self, stage: Stage, h: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        """One stage, of which nothing but its input is kept for the backward pass where the config says so."""
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(stage, h, emb, cond, use_reentrant=False)
        return stage(h, emb, cond)

    def embed(self, t: Tensor, vector: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Timestep and vector as every residual block takes them: t [B] -> [B, 4·channels]."""
        emb = self.time(timestep_embedding(t, self.config.channels).to(dtype))
        return F.silu(emb if vector is None else emb + self.vector(vector))


class Layers:
    """Builds the three parts of a U-Net from its config."""

    def __init__(self, config: UNetConfig, context_dim: int | None) -> None:
        self.config, self.context_dim = config, context_dim
        self.c_emb = 4 * config.channels
        self.widths = [config.channels * mult for mult in config.channel_mult]

    def down(self, c: int) -> tuple[nn.ModuleList, list[int]]:
        """The way down from c channels, and the widths of the skips that it leaves."""
        stages, skips = nn.ModuleList(), [c]
        for level in range(len(self.widths)):
            if level > 0:
                resample = self.res(c, c, halve) if self.config.resblock_updown else Downsample(c)
                stages.append(Stage({"resample": resample}))
                skips.append(c)
            for _ in range(self.config.num_res_blocks):
                stages.append(self.stage(c, level))
                c = self.widths[level]
                skips.append(c)
        return stages, skips

    def middle(self, c: int) -> Stage:
        return Stage({"res1": self.res(c, c), "attention": self.attention(c), "res2": self.res(c, c)})

    def up(self, skips: list[int]) -> nn.ModuleList:
        """The way up, which takes the skips in reverse."""
        stages, skips = nn.ModuleList(), list(skips)
        c = skips[-1]
        for level in reversed(range(len(self.widths))):
            for _ in range(self.config.num_res_blocks + 1):
                stages.append(self.stage(c + skips.pop(), level))
                c = self.widths[level]
            if level > 0:
                stages[-1]["resample"] = self.res(c, c, double) if self.config.resblock_updown else Upsample(c)
        return stages

    def stage(self, c_in: int, level: int) -> Stage:
        stage = Stage({"res": self.res(c_in, self.widths[level])})
        if level in self.config.attention_levels:
            stage["attention"] = self.attention(self.widths[level])
        return stage

    def res(self, c_in: int, c_out: int, resample: Callable[[Tensor], Tensor] = same) -> ResBlock:
        config = self.config
        return ResBlock(c_in, c_out, self.c_emb, config.norm_groups, config.dropout, config.scale_shift_norm, resample)

    def attention(self, c: int) -> SelfAttention | Transformer:
        config = self.config
        if self.context_dim:
            depth = config.transformer_depth
            return Transformer(c, config.heads(c), self.context_dim, depth, config.norm_groups, config.pos_embed)
        return SelfAttention(c, config.heads(c), config.norm_groups, config.pos_embed)


def _check(config: UNetConfig) -> None:
    """Refuse, by name, a config of which no network can be built."""
    widths = [config.channels * mult for mult in config.channel_mult]
    levels = set(range(len(widths)))
    if not widths:
        raise UserError("unet.channel_mult is empty; it needs one multiple per level")
    if set(config.attention_levels) - levels:
        raise UserError(f"unet.attention_levels is {config.attention_levels}; the levels are 0 to {len(widths) - 1}")
    if config.patch_size < 1:
        raise UserError(f"unet.patch_size is {config.patch_size}; it must be 1 (every place by itself) or more")
    if any(width % config.norm_groups for width in (config.channels, *widths)):
        raise UserError(
            f"unet.norm_groups is {config.norm_groups}; it must divide {config.channels} and all of {widths}"
        )
    name = "head_channels" if config.head_channels else "num_heads"
    attending = [widths[level] for level in sorted({*config.attention_levels, len(widths) - 1})]
    if any(width % getattr(config, name) for width in attending):
        raise UserError(f"unet.{name} is {getattr(config, name)}; it must divide the widths that attend, {attending}")
    if config.pos_embed and any(width % 4 for width in attending):
        raise UserError(f"unet.pos_embed needs widths that divide by 4; these attend: {attending}")
