"""The first-stage autoencoder: image -> latent -> image. Module names are those of the original state dict."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.blocks import Downsample, ResolutionLevel, Upsample, middle_blocks, norm
from latentdiff.autoencoder.bottleneck import MODULES, IdentityConfig, KLConfig, VQConfig, sample, upcast
from latentdiff.autoencoder.equivariance import Warp, identity
from latentdiff.config import UserError, short_name

Tiling = Callable[[nn.Module, Tensor], Tensor]  # (encoder or decoder, its input) -> its output

INIT_LOGVAR = -6.0  # of the posterior before training


@dataclass(frozen=True)
class AutoencoderConfig:
    channels: int = 128  # width of the first resolution level
    channel_mult: tuple[int, ...] = (1, 2, 4, 4)  # width per level; each level halves the resolution; (): pixel space
    num_res_blocks: int = 2  # residual blocks per level; the decoder has one more
    attention_levels: tuple[int, ...] = ()  # levels with attention after each block; 0 is full resolution
    mid_attention: bool = True  # attention in the middle of encoder and decoder
    z_channels: int = 4  # channels of the latent
    inner_channels: int = 0  # between the networks and the 1x1 convolutions around the latent; 0: z_channels
    bottleneck: KLConfig | VQConfig | IdentityConfig = KLConfig()  # regularization of the latent: KL, VQ or Identity
    norm_groups: int = 32  # groups of the group norms; must divide every width
    dropout: float = 0.0  # inside the residual blocks


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, c_out: int) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        groups, dropout = config.norm_groups, config.dropout
        self.conv_in = nn.Conv2d(3, config.channels, 3, padding=1)
        self.down = nn.ModuleList()
        for i, (c, width) in enumerate(zip([config.channels] + widths, widths)):
            level = ResolutionLevel(c, width, config.num_res_blocks, i in config.attention_levels, groups, dropout)
            level.downsample = Downsample(width) if i < len(widths) - 1 else nn.Identity()
            self.down.append(level)
        self.mid = middle_blocks(widths[-1], config.mid_attention, groups, dropout)
        self.norm_out = norm(groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], c_out, 3, padding=1)

    def features(self, x: Tensor) -> Tensor:
        """The input of the last convolution: [B, 3, H, W] -> [B, C, h, w]."""
        h = self.conv_in(x)  # [B, channels, H, W]
        for level in self.down:
            h = level.downsample(level(h))  # [B, width, H/2, W/2]; the last level keeps H, W
        return F.silu(self.norm_out(self.mid(h)))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv_out(self.features(x))  # [B, c_out, h, w]


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, c_in: int) -> None:
        super().__init__()
        widths = [config.channels * mult for mult in config.channel_mult]
        groups, dropout = config.norm_groups, config.dropout
        self.conv_in = nn.Conv2d(c_in, widths[-1], 3, padding=1)
        self.mid = middle_blocks(widths[-1], config.mid_attention, groups, dropout)
        self.up = nn.ModuleList()  # level 0 is full resolution, as in the encoder; it runs last
        for i, (c, width) in enumerate(zip(widths[1:] + widths[-1:], widths)):
            level = ResolutionLevel(c, width, config.num_res_blocks + 1, i in config.attention_levels, groups, dropout)
            level.upsample = Upsample(width) if i > 0 else nn.Identity()
            self.up.append(level)
        self.norm_out = norm(groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def features(self, z: Tensor) -> Tensor:
        """The input of the last convolution: [B, c_in, h, w] -> [B, C, H, W]."""
        h = self.mid(self.conv_in(z))  # [B, width, h, w]
        for level in reversed(self.up):
            h = level.upsample(level(h))  # [B, width, 2h, 2w]; level 0 keeps h, w
        return F.silu(self.norm_out(h))

    def forward(self, z: Tensor) -> Tensor:
        return self.conv_out(self.features(z))  # [B, 3, H, W]


class Reconstruction(NamedTuple):
    """The output of forward: all tensors that the loss takes gradients of, so that DDP finds every one of them."""

    y: Tensor  # [B, 3, H, W], the reconstruction
    h: Tensor  # [B, C, H, W], the input of the decoder's last convolution
    bottleneck: dict[str, Tensor]  # what the bottleneck's loss reads


def untiled(network: nn.Module, x: Tensor) -> Tensor:
    return network(x)


class Autoencoder(nn.Module):
    """Encodes images into normalized latents z and decodes them; stage two uses encode, decode, z_channels and factor.

    `tiling` applies encoder and decoder: `untiled`, or a function of tiling.py for large images.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        check_config(config)
        self.config, self.z_channels = config, config.z_channels
        self.tiling: Tiling = untiled
        self.factor = 2 ** max(0, len(config.channel_mult) - 1)
        self.quantize = MODULES[type(config.bottleneck)](config.bottleneck, config.z_channels)
        moments, z, inner = self.quantize.moments, config.z_channels, config.inner_channels or config.z_channels
        pixel_space = not config.channel_mult
        self.encoder = nn.Identity() if pixel_space else Encoder(config, moments * inner)
        self.decoder = nn.Identity() if pixel_space else Decoder(config, inner)
        self.quant_conv = nn.Identity() if pixel_space else nn.Conv2d(moments * inner, moments * z, 1)
        self.post_quant_conv = nn.Identity() if pixel_space else nn.Conv2d(z, inner, 1)
        self.apply(_init_unit_gain)
        if isinstance(config.bottleneck, KLConfig) and not pixel_space:
            # noise of std 1 would hide the latent from the decoder for hundreds of steps
            nn.init.constant_(self.quant_conv.bias[config.z_channels :], INIT_LOGVAR)
        self.register_buffer("latent_shift", torch.zeros(config.z_channels, 1, 1))
        self.register_buffer("latent_scale", torch.ones(config.z_channels, 1, 1))

    @property
    def last_layer(self) -> nn.Conv2d:
        """The decoder's last convolution."""
        return self.decoder.conv_out

    def check_size(self, x: Tensor) -> None:
        """Raise UserError if a side of x [B, 3, H, W] is not a multiple of the factor."""
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise UserError(f"an image is {width}x{height}; this autoencoder needs multiples of {self.factor}")

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """x [B, 3, H, W] in [-1, 1] -> mean and logvar [B, C, h, w] before normalization; logvar is None without KL."""
        self.check_size(x)
        return self.quantize.split(self.quant_conv(self.tiling(self.encoder, x)))

    def normalize(self, mean: Tensor, logvar: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Moments -> z [B, C, h, w]: of the mean, or with noise of a posterior sample."""
        return (sample(mean, logvar, noise) - self.latent_shift) * self.latent_scale

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """x [B, 3, H, W] in [-1, 1] -> normalized z [B, C, h, w]: the mean, or with noise a posterior sample."""
        return self.normalize(*self.moments(x), noise)

    def nearest_codes(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] with every vector replaced by its nearest code; without a codebook, z itself."""
        return self.normalize(self.quantize.nearest_codes(z / self.latent_scale + self.latent_shift))

    def decode(self, z: Tensor) -> Tensor:
        """z [B, C, h, w] -> [B, 3, H, W], approximately in [-1, 1]; with a codebook, z is quantized first."""
        latent = self.quantize.nearest_codes(z / self.latent_scale + self.latent_shift)
        return upcast(self.tiling(self.decoder, self.post_quant_conv(latent)))

    def forward(self, x: Tensor, noise: Tensor | None = None, warp: Warp = identity) -> Reconstruction:
        """The forward pass in training; `warp` is applied to the latent, so that y reconstructs warp(x).

        x: images [B, 3, H, W] in [-1, 1]. noise: of the posterior sample, [B, C, h, w]; None: the mean.
        """
        assert self.config.channel_mult, "pixel space has nothing to train"
        latent, terms = self.quantize(*self.moments(x), noise)  # [B, C, h, w]
        h = self.decoder.features(self.post_quant_conv(warp(latent)))  # [B, channels, H, W]
        return Reconstruction(upcast(self.decoder.conv_out(h)), h, terms)

    @torch.no_grad()
    def set_latent_stats(self, shift: Tensor | float, scale: Tensor | float) -> None:
        """Set z = (latent - shift)·scale; each a number, or one per channel."""
        for buffer, value in ((self.latent_shift, shift), (self.latent_scale, scale)):
            buffer.copy_(torch.as_tensor(value).reshape(-1, 1, 1))

    def weights_hash(self) -> str:
        """sha256 of the weights without latent_shift and latent_scale; cached moments do not depend on these two."""
        digest = hashlib.sha256()
        for name, value in sorted(self.state_dict().items()):
            if name not in ("latent_shift", "latent_scale"):
                digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _init_unit_gain(module: nn.Module) -> None:
    """Initialize convolutions with unit gain (He et al. 2015); with PyTorch's default every one shrinks its input."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)


def check_config(config: AutoencoderConfig) -> None:
    """Raise UserError for a config that cannot be built."""
    mults, levels = config.channel_mult, range(len(config.channel_mult))
    if not mults and (config.z_channels != 3 or not isinstance(config.bottleneck, IdentityConfig)):
        raise UserError(
            f"channel_mult is empty (pixel space), with z_channels {config.z_channels} and bottleneck "
            f"{short_name(type(config.bottleneck))}; pixel space needs z_channels=3 and bottleneck=Identity"
        )
    for width in sorted({config.channels * mult for mult in (1, *mults)} if mults else ()):
        if width % config.norm_groups:
            raise UserError(f"norm_groups is {config.norm_groups}; it must divide every width, and one is {width}")
    for level in set(config.attention_levels) - set(levels):
        raise UserError(f"attention_levels has {level}; the levels of channel_mult={mults} are {[*levels]}")
