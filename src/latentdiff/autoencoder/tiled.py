"""Encoding and decoding large pictures in less memory, by two ways through the networks: autoencoder.through = ...

`exact` runs them layer by layer over strips of rows. A convolution reads the bordering rows of the neighbours, a norm
takes its statistics from all strips, attention sees all keys: the result is that of the whole picture but for rounding.
What is left in memory is one feature map and a strip, and grows with the picture; untiled it is three maps and more.
`blended` runs them on overlapping tiles, each by itself: beside the picture itself, memory is that of a tile, however
large the picture. But every tile has statistics of its own.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Decoder, Encoder
from latentdiff.autoencoder.blocks import Attention, Downsample, ResBlock, Upsample
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.layers import attention, to_image, to_tokens
from latentdiff.tiles import blend

Network = Encoder | Decoder | nn.Identity  # the last: pixel space
Strips = list[Tensor]  # [B, C, rows, W] each, from the top down; layers put their results into the list they are given


def exact(network: Network, x: Tensor, rows: int = 8) -> Tensor:
    """network(x) but for rounding, in strips of so many rows of the latent; whole where x wants a gradient."""
    if isinstance(network, nn.Identity) or x.requires_grad:
        return network(x)
    down, _ = scales(network)
    return torch.cat([by_strips(network, list(one.split(rows * down, dim=2))) for one in x.split(1)])


def blended(network: Network, x: Tensor, tile: int = 32, overlap: int = 8) -> Tensor:
    """About network(x), of overlapping tiles of so many places of the latent: tones may drift from tile to tile."""
    if isinstance(network, nn.Identity):
        return network(x)
    down, up = scales(network)

    def part(rows: slice, columns: slice) -> Tensor:
        top, left = rows.start * down, columns.start * down
        return network(x[:, :, top : rows.stop * down, left : columns.stop * down])

    return blend(part, x.shape[2] // down, x.shape[3] // down, tile, overlap, up)


def scales(network: Encoder | Decoder) -> tuple[int, int]:
    """Per place of the latent and direction, the places of what the network is given and of what it gives."""
    if isinstance(network, Encoder):
        return 2 ** (len(network.down) - 1), 1
    return 1, 2 ** (len(network.up) - 1)


@torch.no_grad()
def by_strips(network: Encoder | Decoder, strips: Strips) -> Tensor:
    """The network's output for the strips of one picture."""
    for layer in layers(network):
        LAYERS[type(layer)](layer, strips)
    return torch.cat([*convolved(network.conv_out, strips, activation(network.norm_out, strips))], dim=2)


def layers(network: Encoder | Decoder) -> Iterator[nn.Module]:
    """The layers in the order of their calls, but for the last norm and convolution."""
    middle = (network.mid.block_1, network.mid.attn_1, network.mid.block_2)
    yield network.conv_in
    if isinstance(network, Decoder):
        yield from middle
    for level in network.down if isinstance(network, Encoder) else reversed(network.up):
        for pair in zip(level.block, level.attn):
            yield from pair
        yield level.downsample if isinstance(network, Encoder) else level.upsample
    if isinstance(network, Encoder):
        yield from middle


# ---- layers on strips


def convolved(conv: nn.Conv2d, x: Strips, before: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Strips of conv(before(x)) for a 3x3 convolution; strip i reads a row of both neighbours, zeros beyond the ends.

    `before` treats rows alike. Once strip i is out, x[i - 1] is read no more.
    """
    for i, strip in enumerate(x):
        strip = before(strip)
        above = before(x[i - 1][:, :, -1:])[:, :, -1:] if i > 0 else torch.zeros_like(strip[:, :, :1])
        below = before(x[i + 1][:, :, :1])[:, :, :1] if i + 1 < len(x) else torch.zeros_like(strip[:, :, :1])
        yield F.conv2d(torch.cat([above, strip, below], dim=2), conv.weight, conv.bias, padding=(0, 1))


def activation(norm: nn.GroupNorm, x: Strips) -> Callable[[Tensor], Tensor]:
    """silu(norm(.)) with the statistics of all strips."""
    scale, shift = affine(norm, x)
    return lambda strip: F.silu(torch.addcmul(shift, strip, scale), inplace=True)


def affine(norm: nn.GroupNorm, x: Strips) -> tuple[Tensor, Tensor]:
    """The group norm of all strips together as scale and shift, [B, C, 1, 1]; variances merged by Chan et al. 1983."""
    found = [torch.var_mean(upcast(s).unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0) for s in x]
    variances, means = (torch.stack(v).double() for v in zip(*found))  # [strips, B, groups]
    share = torch.tensor([s.shape[2] for s in x], device=means.device).view(-1, 1, 1) / sum(s.shape[2] for s in x)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(each, 1) * scale
    return tuple(v.to(x[0].dtype)[:, :, None, None] for v in (scale, shift))


def convolve(conv: nn.Conv2d, x: Strips) -> None:
    x[:] = convolved(conv, x, lambda strip: strip)


def residual(block: ResBlock, x: Strips) -> None:
    h = []
    for strip in convolved(block.conv1, x, activation(block.norm1, x)):
        h.append(strip)
        if len(h) > 1:
            x[len(h) - 2] = block.nin_shortcut(x[len(h) - 2])
    x[-1] = block.nin_shortcut(x[-1])
    for i, strip in enumerate(convolved(block.conv2, h, activation(block.norm2, h))):
        x[i] = strip.add_(x[i])


def attend(block: Attention, x: Strips) -> None:
    """Keys and values of the whole map, queries strip by strip."""
    scale, shift = affine(block.norm, x)
    normed = [torch.addcmul(shift, strip, scale) for strip in x]
    k, v = (torch.cat([to_tokens(linear(h)) for h in normed], dim=1) for linear in (block.k, block.v))
    for i, h in enumerate(normed):
        tokens = attention(to_tokens(block.q(h)), k, v, heads=1)
        x[i] = x[i] + block.proj_out(to_image(tokens, *h.shape[2:]))


def upsample(block: Upsample, x: Strips) -> None:
    done = []
    for strip in convolved(block.conv, x, lambda s: F.interpolate(s, scale_factor=2, mode="nearest")):
        done.append(strip)
        if len(done) > 1:
            x[len(done) - 2] = None  # spent
    x[:] = done


def downsample(block: Downsample, x: Strips) -> None:
    for i, strip in enumerate(x):
        below = x[i + 1][:, :, :1] if i + 1 < len(x) else torch.zeros_like(strip[:, :, :1])
        rows = F.pad(torch.cat([strip, below], dim=2), (0, 1))
        x[i] = F.conv2d(rows, block.conv.weight, block.conv.bias, stride=2)


LAYERS = {
    nn.Conv2d: convolve, ResBlock: residual, Attention: attend, Upsample: upsample, Downsample: downsample,
    nn.Identity: lambda block, x: None,
}  # fmt: skip
