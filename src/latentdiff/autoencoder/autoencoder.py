"""Stage one's network: picture -> latent -> picture. Module names are the original release's, so its weights load."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.blocks import Attention, Downsample, ResBlock, Upsample, norm
from latentdiff.autoencoder.bottleneck import MODULES, IdentityConfig, KLConfig, VQConfig, sample, upcast
from latentdiff.autoencoder.equivariance import Warp, same
from latentdiff.config import UserError, short_name

Through = Callable[[nn.Module, Tensor], Tensor]  # an encoder or a decoder, and what it is given -> its output

START_LOGVAR = -6.0  # of the posterior before training


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 128  # width of the first level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # width per level, each half the size of the last; (): pixel space
    num_res_blocks: int = 2  # residual blocks per level; the decoder has one more
    attention_levels: tuple[int, ...] = ()  # levels with attention after each block; 0 is full resolution
    mid_attention: bool = True  # attention in the middle of encoder and decoder
    z_channels: int = 4  # channels of the latent
    inner_channels: int = 0  # between the networks and the 1x1 convolutions around the latent; 0: as many as it has
    bottleneck: KLConfig | VQConfig | IdentityConfig = KLConfig()  # what holds the latent together: KL, VQ or Identity
    norm_groups: int = 32  # groups of the group norms; must divide every width
    dropout: float = 0.0  # inside the residual blocks


class Level(nn.Module):
    """The blocks of one resolution; the encoder and the decoder hang their resampling on it."""

    def __init__(self, c_in: int, c_out: int, blocks: int, attend: bool, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups = [c_in] + [c_out] * (blocks - 1), config.norm_groups
        self.block = nn.ModuleList(ResBlock(c, c_out, groups, config.dropout) for c in widths)
        self.attn = nn.ModuleList(Attention(c_out, groups) if attend else nn.Identity() for _ in widths)

    def forward(self, x: Tensor) -> Tensor:
        for block, attn in zip(self.block, self.attn):
            x = attn(block(x))
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, config: AutoencoderConfig) -> None:
        super().__init__()
        self.block_1 = ResBlock(channels, channels, config.norm_groups, config.dropout)
        self.attn_1 = Attention(channels, config.norm_groups) if config.mid_attention else nn.Identity()
        self.block_2 = ResBlock(channels, channels, config.norm_groups, config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, c_out: int) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (c, width) in enumerate(zip([config.channels] + widths, widths)):
            level = Level(c, width, config.num_res_blocks, i in config.attention_levels, config)
            level.downsample = Downsample(width) if i < len(widths) - 1 else nn.Identity()
            self.down.append(level)
        self.mid = Middle(widths[-1], config)
        self.norm_out = norm(config.norm_groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c_out, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """What the last convolution reads, [B, C, h, w]."""
        h = self.conv_in(x)
        for level in self.down:
            h = level.downsample(level(h))
        return F.silu(self.norm_out(self.mid(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.features(x))  # [B, c_out, h, w]


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, c_in: int) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        self.conv_in = nn.Conv2d(c_in, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList()  # as in the encoder, level 0 is full resolution; it is run last
        for i, (c, width) in enumerate(zip(widths[1:] + widths[-1:], widths)):
            level = Level(c, width, config.num_res_blocks + 1, i in config.attention_levels, config)
            level.upsample = Upsample(width) if i > 0 else nn.Identity()
            self.up.append(level)
        self.norm_out = norm(config.norm_groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """What the last convolution reads, [B, C, H, W]."""
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level.upsample(level(h))
        return F.silu(self.norm_out(h))

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.features(z))


class Reconstruction(NamedTuple):
    """All that the loss needs, so that a wrapper (DDP) sees every output that gradients come from."""

    y: Tensor  # [B, 3, H, W], the picture again
    h: Tensor  # [B, C, H, W], what the decoder's last convolution read
    bottleneck: dict[str, Tensor]  # what its loss needs; see the forward of bottleneck.MODULES


def whole(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


class Autoencoder(nn.Module):
    """encode, decode, z_channels and factor are all that stage two knows of stage one; its z is always normalised.

    `through` is how pictures and latents go through its networks: whole, or in tiles (tiled.exact, tiled.blended).
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        check(config)
        self.config, self.z_channels = config, config.z_channels
        self.through: Through = whole
        self.factor = 2 ** max(0, len(config.channel_mult) - 1)
        self.quantize = MODULES[type(config.bottleneck)](config.bottleneck, config.z_channels)
        moments, z, inner = self.quantize.moments, config.z_channels, config.inner_channels or config.z_channels
        pixels = not config.channel_mult
        self.encoder = nn.Identity() if pixels else Encoder(config, moments * inner)
        self.decoder = nn.Identity() if pixels else Decoder(config, inner)
        self.quant_conv = nn.Identity() if pixels else nn.Conv2d(moments * inner, moments * z, 1)
        self.post_quant_conv = nn.Identity() if pixels else nn.Conv2d(z, inner, 1)
        self.apply(_keep_size)
        if isinstance(config.bottleneck, KLConfig) and not pixels:
            # a posterior that starts at std 1 hides the latent from the decoder for hundreds of steps
            nn.init.constant_(self.quant_conv.bias[config.z_channels :], START_LOGVAR)
        self.register_buffer("shift", torch.zeros(config.z_channels, 1, 1))
        self.register_buffer("scale", torch.ones(config.z_channels, 1, 1))

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return self.decoder.conv_out

    def check_size(self, x: Tensor) -> None:
        """Refuse pictures that the encoder cannot halve to the end."""
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(f"a picture is {width}x{height}; this autoencoder takes multiples of {self.factor}")

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, 3, H, W] in [-1, 1] -> mean, logvar [B, C, h, w] before normalisation; logvar is None without KL."""
        self.check_size(x)
        return self.quantize.split(self.quant_conv(self.through(self.encoder, x)))

    def normalise(self, mean: Tensor, logvar: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Moments -> z: of the mean, or with noise of a posterior sample."""
        return (sample(mean, logvar, noise) - self.shift) * self.scale

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> z [B, C, h, w], normalised."""
        return self.normalise(*self.moments(x), noise)

    def quantise(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] made of the codebook's codes; without a codebook, z itself."""
        return (self.quantize.quantise(z / self.scale + self.shift) - self.shift) * self.scale

    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] -> [B, 3, H, W], about [-1, 1]. The codebook, if any, is the decoder's first layer."""
        latent = self.quantize.quantise(z / self.scale + self.shift)
        return upcast(self.through(self.decoder, self.post_quant_conv(latent)))

    def forward(self, x: Tensor, noise: Tensor | None = None, warp: Warp = same) -> Reconstruction:
        """x [B, 3, H, W], noise like z (None: the mean) -> what stage one's loss needs; y is of the warped latent."""
        assert self.config.channel_mult, "pixel space has nothing to train"
        latent, terms = self.quantize(*self.moments(x), noise)
        h = self.decoder.features(self.post_quant_conv(warp(latent)))
        return Reconstruction(upcast(self.decoder.conv_out(h)), h, terms)

    @torch.no_grad()
    def set_statistics(self, shift: Tensor | float, scale: Tensor | float) -> None:
        """z = (latent - shift)·scale from now on; a number, or one per channel."""
        for buffer, value in ((self.shift, shift), (self.scale, scale)):
            buffer.copy_(torch.as_tensor(value).reshape(-1, 1, 1))

    def weights_hash(self) -> str:
        """sha256 over the weights, without the statistics: what latents before normalisation depend on."""
        total = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if name not in ("shift", "scale"):
                total.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def _keep_size(module: nn.Module) -> None:
    """Convolutions that start with unit gain (He et al. 2015); torch's own start shrinks the signal at every one."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


def check(config: AutoencoderConfig) -> None:
    """Refuse what cannot be built."""
    mults, levels = config.channel_mult, range(len(config.channel_mult))
    if not mults and (config.z_channels != 3 or not isinstance(config.bottleneck, IdentityConfig)):
        raise UserError(
            f"channel_mult is empty (pixel space), with z_channels {config.z_channels} and bottleneck "
            f"{short_name(type(config.bottleneck))}; pixel space wants z_channels=3 and bottleneck=Identity"
        )
    for width in sorted({config.channels * mult for mult in (1, *mults)} if mults else ()):
        if width % config.norm_groups:
            raise UserError(f"norm_groups is {config.norm_groups}; it must divide every width, and one is {width}")
    for level in set(config.attention_levels) - set(levels):
        raise UserError(f"attention_levels has {level}; the levels of channel_mult={mults} are {[*levels]}")
