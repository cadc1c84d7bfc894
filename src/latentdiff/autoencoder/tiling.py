"""Encoding and decoding of large images with less memory: set `autoencoder.tiling` to one of three functions.

`exact` runs the networks layer by layer over horizontal strips and equals the untiled result up to rounding: norms take
their statistics from all strips, attention sees all keys. It keeps one feature map in memory instead of three or more.
`offloaded` does the same with all strips but the current ones in files, so that memory beside the image is bounded.
`blended` blends overlapping tiles: memory is bounded and nothing is written, but each tile has its own norm statistics.
"""

import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Decoder, Encoder
from latentdiff.autoencoder.blocks import Attention, Downsample, ResBlock, Upsample
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.config import UserError
from latentdiff.layers import attention, blend, to_image, to_tokens

Network = Encoder | Decoder | nn.Identity  # nn.Identity: pixel space


def exact(network: Network, x: Tensor, rows: int = 8) -> Tensor:
    """network(x) up to rounding, in strips of `rows` rows of the latent; untiled if x requires a gradient."""
    return apply_in_strips(network, x, rows)


def offloaded(network: Network, x: Tensor, positions: int = 4096) -> Tensor:
    """As `exact`, in strips of about `positions` latent positions, in files under TMPDIR: at most two feature maps."""
    rows = max(1, positions // (x.shape[3] // scales(network)[0]))
    with tempfile.TemporaryDirectory(prefix="latentdiff-") as folder:
        return apply_in_strips(network, x, rows, folder)


def blended(network: Network, x: Tensor, tile: int = 32, overlap: int = 8) -> Tensor:
    """An approximation of network(x) from overlapping tiles; tile and overlap are in latent positions."""
    if isinstance(network, nn.Identity):
        return network(x)
    scale_in, scale_out = scales(network)

    def apply_to_tile(rows: slice, columns: slice) -> Tensor:
        top, left = rows.start * scale_in, columns.start * scale_in
        return network(x[:, :, top : rows.stop * scale_in, left : columns.stop * scale_in])

    return blend(apply_to_tile, x.shape[2] // scale_in, x.shape[3] // scale_in, tile, overlap, scale_out)


def scales(network: Network) -> tuple[int, int]:
    """Sides of the network's input and output per side of the latent."""
    if isinstance(network, Encoder):
        return 2 ** (len(network.down) - 1), 1
    return 1, 2 ** (len(network.up) - 1) if isinstance(network, Decoder) else 1


class Strips:
    """A sequence of tensors [B, C, rows, W], top to bottom, in memory or, with a folder, in one file each.

    A file is deleted as soon as its strip is replaced or no longer referenced.
    """

    def __init__(self, strips: Iterable[Tensor] = (), folder: str | None = None) -> None:
        self.folder, self.strips = folder, []
        for strip in strips:
            self.append(strip)

    def empty_like(self) -> "Strips":
        """An empty sequence with the same storage."""
        return Strips(folder=self.folder)

    def append(self, strip: Tensor) -> None:
        self.strips.append(None)
        self[-1] = strip

    def __len__(self) -> int:
        return len(self.strips)

    def __getitem__(self, i: int) -> Tensor:
        return self.strips[i].read() if isinstance(self.strips[i], OffloadedTensor) else self.strips[i]

    def __setitem__(self, i: int, strip: Tensor | None) -> None:
        self.strips[i] = OffloadedTensor(strip, self.folder) if self.folder and strip is not None else strip


class OffloadedTensor:
    """A tensor in a file, which is deleted together with this object."""

    def __init__(self, tensor: Tensor, folder: str) -> None:
        handle, self.path = tempfile.mkstemp(dir=folder)
        weakref.finalize(self, Path(self.path).unlink, missing_ok=True)  # the folder may be deleted already
        try:
            with open(handle, "wb") as file:
                torch.save(tensor.clone(), file)  # a view would save its whole storage
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"cannot write a temporary file in {folder} ({error}); set TMPDIR to a folder with more space"
            ) from error

    def read(self) -> Tensor:
        return torch.load(self.path, mmap=True)  # reads only the rows that are used


def apply_in_strips(network: Network, x: Tensor, rows: int, folder: str | None = None) -> Tensor:
    """network(x) in strips of `rows` rows of the latent, one image at a time; untiled if x requires a gradient."""
    if isinstance(network, nn.Identity) or x.requires_grad:
        return network(x)
    outputs = []
    with torch.no_grad():
        for image in x.split(1):
            strips = Strips(image.split(rows * scales(network)[0], dim=2), folder)
            for layer in layers(network):
                strips = LAYERS[type(layer)](layer, strips)
            before = norm_silu(network.norm_out, strips)
            outputs.append(torch.cat([*conv3x3(network.conv_out, strips, before)], dim=2))
    return torch.cat(outputs)


def layers(network: Encoder | Decoder) -> Iterator[nn.Module]:
    """The layers in the order of forward, without the last norm and convolution."""
    encode = isinstance(network, Encoder)
    yield network.conv_in
    yield from () if encode else network.mid
    for level in network.down if encode else reversed(network.up):
        for block_and_attention in zip(level.block, level.attn):
            yield from block_and_attention
        yield level.downsample if encode else level.upsample
    yield from network.mid if encode else ()


# ---- layers on strips: each returns the strips of its output and may overwrite those of its input


def conv3x3(layer: nn.Conv2d, x: Strips, before: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Yield the strips of layer(before(x)); `before` acts on each row alone. Strip i of x is then no longer needed."""
    above = None
    for i, strip in enumerate(x):
        strip = before(strip)
        border = torch.zeros_like(strip[:, :, :1])  # the padding of the image
        below = before(x[i + 1][:, :, :1])[:, :, :1] if i + 1 < len(x) else border
        padded = torch.cat([border if above is None else above, strip, below], dim=2)
        above = strip[:, :, -1:].clone()
        yield F.conv2d(padded, layer.weight, layer.bias, padding=(0, 1))


def norm_silu(norm: nn.GroupNorm, x: Strips) -> Callable[[Tensor], Tensor]:
    """The function silu(norm(.)) of a strip, with the statistics of all strips."""
    scale, shift = norm_scale_shift(norm, x)
    return lambda strip: F.silu(torch.addcmul(shift, strip, scale), inplace=True)


def norm_scale_shift(norm: nn.GroupNorm, x: Strips) -> tuple[Tensor, Tensor]:
    """The group norm of all strips as scale and shift [B, C, 1, 1]; variances are merged as in Chan et al. 1983."""
    stats, rows = [], []
    for strip in x:
        stats.append(torch.var_mean(upcast(strip).unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0))
        rows.append(strip.shape[2])
    variances, means = (torch.stack(v).double() for v in zip(*stats))  # [strips, B, groups]
    weights = torch.tensor(rows, device=means.device).view(-1, 1, 1) / sum(rows)
    mean = (weights * means).sum(0)
    variance = (weights * (variances + (means - mean).square())).sum(0)
    group_size = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(group_size, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(group_size, 1) * scale
    return tuple(v.to(strip.dtype)[:, :, None, None] for v in (scale, shift))


def conv(layer: nn.Conv2d, x: Strips, before: Callable[[Tensor], Tensor] = lambda strip: strip) -> Strips:
    out = x.empty_like()
    for i, strip in enumerate(conv3x3(layer, x, before)):
        x[i] = None
        out.append(strip)
    return out


def res_block(block: ResBlock, x: Strips) -> Strips:
    h = x.empty_like()
    for i, strip in enumerate(conv3x3(block.conv1, x, norm_silu(block.norm1, x))):
        h.append(strip)
        x[i] = block.nin_shortcut(x[i])
    for i, strip in enumerate(conv3x3(block.conv2, h, norm_silu(block.norm2, h))):
        h[i] = None
        x[i] = strip.add_(x[i])
    return x


def self_attention(block: Attention, x: Strips) -> Strips:
    """Queries one strip at a time, each with the keys and values of all strips."""
    scale, shift = norm_scale_shift(block.norm, x)
    keys, values = x.empty_like(), x.empty_like()
    for strip in x:
        h = torch.addcmul(shift, strip, scale)
        keys.append(to_tokens(block.k(h)))
        values.append(to_tokens(block.v(h)))
    if x.folder:
        attend = partial(chunked_attention, keys=keys, values=values)
    else:
        attend = partial(attention, k=torch.cat([*keys], dim=1), v=torch.cat([*values], dim=1), heads=1)
    for i, strip in enumerate(x):
        q = to_tokens(block.q(torch.addcmul(shift, strip, scale)))
        x[i] = strip + block.proj_out(to_image(attend(q), *strip.shape[2:]))
    return x


def chunked_attention(q: Tensor, keys: Strips, values: Strips) -> Tensor:
    """Attention of q [B, N, C] to chunks of keys and values [B, n, C], one at a time (Rabe and Staats 2021)."""
    max_score, total, out = -torch.inf, 0.0, 0.0
    with torch.autocast("cuda" if q.is_cuda else "cpu", enabled=False):  # exponents need full precision
        for k, v in zip(keys, values):
            scores = upcast(q) @ upcast(k).mT * q.shape[-1] ** -0.5  # [B, N, n]
            previous, max_score = max_score, scores.amax(-1, keepdim=True).clamp(min=max_score)
            weights, rescale = (scores - max_score).exp(), (previous - max_score).exp()  # rescale when the max grows
            total = total * rescale + weights.sum(-1, keepdim=True)  # [B, N, 1]
            out = out * rescale + weights @ upcast(v)  # [B, N, C]
        return (out / total).to(q.dtype)


def upsample(block: Upsample, x: Strips) -> Strips:
    return conv(block.conv, x, lambda strip: F.interpolate(strip, scale_factor=2, mode="nearest"))


def downsample(block: Downsample, x: Strips) -> Strips:
    out = x.empty_like()
    for i, strip in enumerate(x):
        below = x[i + 1][:, :, :1] if i + 1 < len(x) else torch.zeros_like(strip[:, :, :1])
        padded = F.pad(torch.cat([strip, below], dim=2), (0, 1))
        x[i] = None
        out.append(F.conv2d(padded, block.conv.weight, block.conv.bias, stride=2))
    return out


LAYERS = {
    nn.Conv2d: conv, ResBlock: res_block, Attention: self_attention, Upsample: upsample, Downsample: downsample,
    nn.Identity: lambda layer, x: x,
}  # fmt: skip
