"""The U-Net of the paper (sec. 3.3), with three inputs for conditions: concat, context and vector."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.diffusion import blocks
from latentdiff.diffusion.blocks import TimestepSequential
from latentdiff.layers import timestep_embedding, zero_module


@dataclass(frozen=True)
class UNetConfig:
    channels: int = 320  # base width; the time embedding has four times as many
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # width of each resolution level in multiples of channels
    num_res_blocks: int = 2  # residual blocks per level of the encoder; the decoder has one more per level
    attention_levels: tuple[int, ...] = (0, 1, 2)  # levels with attention, 0 the finest; the middle always has it
    num_heads: int = 8  # of every attention, unless head_channels is set
    head_channels: int = 0  # if above 0: heads = width / head_channels
    transformer_depth: int = 1  # transformer blocks per attention, if there is a context
    dropout: float = 0.0  # inside the residual blocks
    scale_shift_norm: bool = False  # the timestep scales and shifts the second norm; otherwise it is added before it
    resblock_updown: bool = False  # down- and upsample in residual blocks; otherwise with convolutions
    norm_groups: int = 32  # of every GroupNorm
    pos_embed: bool = False  # positional embedding in attention, learns spatial relations far sooner; not in the paper
    patch_size: int = 1  # side of the patches that become channels, for pixel-space diffusion; not in the paper
    gradient_checkpointing: bool = False  # recompute activations in backward: far less memory, a third more time

    @property
    def widths(self) -> list[int]:
        """Channels of each resolution level."""
        return [self.channels * mult for mult in self.channel_mult]

    def heads(self, width: int) -> int:
        """Heads of an attention over `width` channels."""
        return width // self.head_channels if self.head_channels else self.num_heads


class UNet(nn.Module):
    """A denoising network on latents, or on pixels.

    Args:
        in_channels: of z_t and cond.concat together.
        context_dim: channels of cond.context; default: no cross-attention.
        vector_dim: channels of cond.vector; default: none.
    """

    def __init__(
        self, config: UNetConfig, in_channels: int, out_channels: int, context_dim: int | None = None,
        vector_dim: int | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        check_config(config)
        self.config, self.context_dim = config, context_dim
        width, c_emb = config.channels, 4 * config.channels
        self.time = nn.Sequential(nn.Linear(width, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.vector = nn.Linear(vector_dim, c_emb) if vector_dim else None
        self.conv_in = nn.Conv2d(in_channels * config.patch_size**2, width, 3, padding=1)
        self.down, skips = down_blocks(config, context_dim)
        c = skips[-1]
        self.middle = middle_block(config, c, context_dim)
        self.up = nn.ModuleList()
        for level in reversed(range(len(config.widths))):
            for _ in range(config.num_res_blocks + 1):
                self.up.append(level_block(config, c + skips.pop(), level, context_dim))
                c = config.widths[level]
            if level > 0:
                up = nn.Upsample(scale_factor=2.0, mode="nearest")
                self.up[-1]["resample"] = res_block(config, c, c, up) if config.resblock_updown else blocks.Upsample(c)
        self.norm_out = nn.GroupNorm(config.norm_groups, c)
        self.conv_out = zero_module(nn.Conv2d(c, out_channels * config.patch_size**2, 3, padding=1))

    def forward(
        self, z_t: Tensor, t: Tensor, cond: Cond = Cond(), return_features: bool = False  # noqa: B008
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        """The prediction [B, out_channels, h, w].

        Args:
            z_t: [B, C, h, w]; h and w must be multiples of config.patch_size.
            t: timesteps [B], integers or not.
            return_features: also return the output of the middle block [B, c, h', w'].
        """
        assert not self.context_dim or cond.context is not None, "cond.context is missing; this U-Net attends to it"
        self.check_size(*z_t.shape[2:])
        p = self.config.patch_size
        emb = self.embed(t, cond.vector, z_t.dtype)  # [B, 4·channels]
        h = z_t if cond.concat is None else torch.cat([z_t, cond.concat], dim=1)  # [B, in_channels, h, w]
        h = self.conv_in(F.pixel_unshuffle(h, p))  # [B, channels, h/p, w/p]
        skips = [h]
        for block in self.down:
            h = self.forward_block(block, h, emb, cond)  # [B, width, h/p/2^level, w/p/2^level]
            skips.append(h)
        h = features = self.forward_block(self.middle, h, emb, cond)  # [B, c, h', w']
        for block in self.up:
            skip = skips.pop()
            h = torch.cat([blocks.resize_like(h, skip), skip], dim=1)  # [B, width + c_skip, h/p/2^level, w/p/2^level]
            h = self.forward_block(block, h, emb, cond)  # [B, width, ...], twice the size after the last of a level
        output = F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(h))), p)  # [B, out_channels, h, w]
        return (output, features) if return_features else output

    def check_size(self, height: int, width: int) -> None:
        """Refuse a latent, or a tile of one, that cannot be cut into patches."""
        if height % self.config.patch_size or width % self.config.patch_size:
            raise UserError(
                f"unet.patch_size is {self.config.patch_size}; it must divide the latent's sides, {height}x{width}"
            )

    def project_kv(self, cond: Cond) -> Cond:
        """The condition with its context as keys and values, computed once for many calls with the same condition."""
        if not self.context_dim:
            return cond
        layers = [block.attn2 for block in self.modules() if isinstance(block, blocks.TransformerBlock)]
        return replace(cond, context={layer: layer.project_kv(cond.context) for layer in layers})

    def forward_block(self, block: TimestepSequential, h: Tensor, emb: Tensor, cond: Cond) -> Tensor:
        if self.config.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, h, emb, cond, use_reentrant=False)
        return block(h, emb, cond)

    def embed(self, t: Tensor, vector: Tensor | None, dtype: torch.dtype) -> Tensor:
        """The input of every residual block: t [B] and vector [B, vector_dim] -> [B, 4·channels]."""
        emb = self.time(timestep_embedding(t, self.config.channels).to(dtype))  # [B, 4·channels]
        return F.silu(emb if vector is None else emb + self.vector(vector))


# ---- parts; the classifier of noisy latents has all but the decoder


def down_blocks(config: UNetConfig, context_dim: int | None) -> tuple[nn.ModuleList, list[int]]:
    """The encoder without conv_in, and the channels of all skips, of which the first is conv_in's output."""
    down, c = nn.ModuleList(), config.channels
    skips = [c]
    for level, width in enumerate(config.widths):
        if level > 0:
            resample = res_block(config, c, c, nn.AvgPool2d(2)) if config.resblock_updown else blocks.Downsample(c)
            down.append(TimestepSequential({"resample": resample}))
            skips.append(c)
        for _ in range(config.num_res_blocks):
            down.append(level_block(config, c, level, context_dim))
            c = width
            skips.append(c)
    return down, skips


def middle_block(config: UNetConfig, c: int, context_dim: int | None) -> TimestepSequential:
    res1, attention, res2 = res_block(config, c, c), attention_block(config, c, context_dim), res_block(config, c, c)
    return TimestepSequential({"res1": res1, "attention": attention, "res2": res2})


def level_block(config: UNetConfig, c_in: int, level: int, context_dim: int | None) -> TimestepSequential:
    """A residual block, and attention at the levels that have it."""
    width = config.widths[level]
    block = TimestepSequential({"res": res_block(config, c_in, width)})
    if level in config.attention_levels:
        block["attention"] = attention_block(config, width, context_dim)
    return block


def res_block(config: UNetConfig, c_in: int, c_out: int, resample: nn.Module | None = None) -> blocks.ResBlock:
    options = config.norm_groups, config.dropout, config.scale_shift_norm
    return blocks.ResBlock(c_in, c_out, 4 * config.channels, *options, resample)


def attention_block(config: UNetConfig, c: int, context_dim: int | None) -> blocks.SelfAttention | blocks.Transformer:
    heads, groups, pos_embed = config.heads(c), config.norm_groups, config.pos_embed
    if context_dim:
        return blocks.Transformer(c, heads, context_dim, config.transformer_depth, groups, pos_embed)
    return blocks.SelfAttention(c, heads, groups, pos_embed)


def check_config(config: UNetConfig) -> None:
    """Refuse a config from which no network can be built."""
    widths, levels = config.widths, range(len(config.widths))
    if not widths:
        raise UserError("unet.channel_mult is empty; it needs one multiple per level")
    if set(config.attention_levels) - set(levels):
        raise UserError(f"unet.attention_levels is {config.attention_levels}; the levels are 0 to {len(widths) - 1}")
    if config.patch_size < 1:
        raise UserError(f"unet.patch_size is {config.patch_size}; it must be 1 (no patches) or above")
    if any(width % config.norm_groups for width in (config.channels, *widths)):
        raise UserError(
            f"unet.norm_groups is {config.norm_groups}; it must divide {config.channels} and all of {widths}"
        )
    name = "head_channels" if config.head_channels else "num_heads"
    attention_widths = [widths[level] for level in sorted({*config.attention_levels, levels[-1]})]
    if any(width % getattr(config, name) for width in attention_widths):
        raise UserError(
            f"unet.{name} is {getattr(config, name)}; it must divide the widths with attention, {attention_widths}"
        )
    if config.pos_embed and any(width % 4 for width in attention_widths):
        raise UserError(f"unet.pos_embed is true; it needs attention widths that 4 divides, not {attention_widths}")
