"""Encoding and decoding large pictures in less memory, by three ways through the networks: autoencoder.through = ...

`exact` runs them layer by layer over strips of rows. A convolution reads the bordering rows of the neighbours, a norm
takes its statistics from all strips, attention sees all keys: the result is that of the whole picture but for rounding.
What is left in memory is one feature map and a strip, and grows with the picture; untiled it is three maps and more.
`spilled` does the same with all strips but those in hand in files: beside the picture itself, memory is bounded.
`blended` runs them on overlapping tiles, each by itself: memory is bounded too, by a tile, and nothing is written. But
every tile has statistics of its own.
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

Network = Encoder | Decoder | nn.Identity  # the last: pixel space
SPILLED = 4096  # places of the latent in a strip that waits in a file


def exact(network: Network, x: Tensor, rows: int = 8) -> Tensor:
    """network(x) but for rounding, in strips of so many rows of the latent; whole where x wants a gradient."""
    if isinstance(network, nn.Identity) or x.requires_grad:
        return network(x)
    down, _ = scales(network)
    return torch.cat([by_strips(network, Strips(one.split(rows * down, dim=2))) for one in x.split(1)])


def spilled(network: Network, x: Tensor, places: int = SPILLED) -> Tensor:
    """As `exact`, in strips of about so many places of the latent that wait in files, where TMPDIR says. Every feature
    map is written once and read a few times, two of them lie there at a time, and keys are read once for each strip."""
    if isinstance(network, nn.Identity) or x.requires_grad:
        return network(x)
    down, _ = scales(network)
    rows = max(1, places // (x.shape[3] // down))
    with tempfile.TemporaryDirectory(prefix="latentdiff-") as folder:
        parts = (Strips(one.split(rows * down, dim=2), folder) for one in x.split(1))
        return torch.cat([by_strips(network, strips) for strips in parts])


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


class Strips:
    """Tensors [B, C, rows, W] from the top down: in memory or, with a folder, each in a file of its own there, of which
    what is read is a copy. What is replaced, or has no strips to be in any more, is gone from the folder too."""

    def __init__(self, strips: Iterable[Tensor] = (), folder: str | None = None) -> None:
        self.folder, self.kept = folder, []
        for strip in strips:
            self.append(strip)

    def others(self) -> "Strips":
        """None as yet, to wait in the same place."""
        return Strips(folder=self.folder)

    def append(self, strip: Tensor) -> None:
        self.kept.append(None)
        self[-1] = strip

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, i: int) -> Tensor:
        return self.kept[i].read() if isinstance(self.kept[i], Waiting) else self.kept[i]

    def __setitem__(self, i: int, strip: Tensor | None) -> None:
        self.kept[i] = Waiting(strip, self.folder) if self.folder and strip is not None else strip


class Waiting:
    """A tensor in a file, which lives as long as this does."""

    def __init__(self, tensor: Tensor, folder: str) -> None:
        handle, self.path = tempfile.mkstemp(dir=folder)
        weakref.finalize(self, Path(self.path).unlink, missing_ok=True)  # the folder may be gone already
        try:
            with open(handle, "wb") as file:
                torch.save(tensor.clone(), file)  # a view would bring all that it is a view of
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{folder} cannot hold what waits there ({error}); set TMPDIR to a folder with more room"
            ) from error

    def read(self) -> Tensor:
        return torch.load(self.path, mmap=True)  # so that a row is read where a row is asked for


@torch.no_grad()
def by_strips(network: Encoder | Decoder, x: Strips) -> Tensor:
    """The network's output for the strips of one picture, which are spent."""
    for layer in layers(network):
        x = LAYERS[type(layer)](layer, x)
    return torch.cat([*convolved(network.conv_out, x, activation(network.norm_out, x))], dim=2)


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


# ---- layers on strips: each gives the strips that follow, and may use up those that it is given


def convolved(conv: nn.Conv2d, x: Strips, before: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """Strips of conv(before(x)) for a 3x3 convolution; strip i reads a row of both neighbours, zeros beyond the ends.

    `before` treats rows alike. Once strip i is out, x[i] is read no more.
    """
    above = None
    for i, strip in enumerate(x):
        strip = before(strip)
        edge = torch.zeros_like(strip[:, :, :1])
        below = before(x[i + 1][:, :, :1])[:, :, :1] if i + 1 < len(x) else edge
        rows = torch.cat([edge if above is None else above, strip, below], dim=2)
        above = strip[:, :, -1:].clone()
        yield F.conv2d(rows, conv.weight, conv.bias, padding=(0, 1))


def activation(norm: nn.GroupNorm, x: Strips) -> Callable[[Tensor], Tensor]:
    """silu(norm(.)) with the statistics of all strips."""
    scale, shift = affine(norm, x)
    return lambda strip: F.silu(torch.addcmul(shift, strip, scale), inplace=True)


def affine(norm: nn.GroupNorm, x: Strips) -> tuple[Tensor, Tensor]:
    """The group norm of all strips together as scale and shift, [B, C, 1, 1]; variances merged by Chan et al. 1983."""
    found, rows = [], []
    for strip in x:
        found.append(torch.var_mean(upcast(strip).unflatten(1, (norm.num_groups, -1)), dim=(2, 3, 4), correction=0))
        rows.append(strip.shape[2])
    variances, means = (torch.stack(v).double() for v in zip(*found))  # [strips, B, groups]
    share = torch.tensor(rows, device=means.device).view(-1, 1, 1) / sum(rows)
    mean = (share * means).sum(0)
    variance = (share * (variances + (means - mean).square())).sum(0)
    each = norm.num_channels // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(each, 1) * norm.weight
    shift = norm.bias - mean.repeat_interleave(each, 1) * scale
    return tuple(v.to(strip.dtype)[:, :, None, None] for v in (scale, shift))


def convolve(conv: nn.Conv2d, x: Strips) -> Strips:
    done = x.others()
    for i, strip in enumerate(convolved(conv, x, lambda strip: strip)):
        x[i] = None
        done.append(strip)
    return done


def residual(block: ResBlock, x: Strips) -> Strips:
    h = x.others()
    for i, strip in enumerate(convolved(block.conv1, x, activation(block.norm1, x))):
        h.append(strip)
        x[i] = block.nin_shortcut(x[i])
    for i, strip in enumerate(convolved(block.conv2, h, activation(block.norm2, h))):
        h[i] = None
        x[i] = strip.add_(x[i])
    return x


def attend(block: Attention, x: Strips) -> Strips:
    """Queries strip by strip, each of the keys and values of all."""
    scale, shift = affine(block.norm, x)
    keys, values = x.others(), x.others()
    for strip in x:
        h = torch.addcmul(shift, strip, scale)
        keys.append(to_tokens(block.k(h)))
        values.append(to_tokens(block.v(h)))
    if x.folder:
        over = partial(merged, keys=keys, values=values)
    else:
        over = partial(attention, k=torch.cat([*keys], dim=1), v=torch.cat([*values], dim=1), heads=1)
    for i, strip in enumerate(x):
        q = to_tokens(block.q(torch.addcmul(shift, strip, scale)))
        x[i] = strip + block.proj_out(to_image(over(q), *strip.shape[2:]))
    return x


def merged(q: Tensor, keys: Strips, values: Strips) -> Tensor:
    """Attention of q [B, N, C] to keys and values [B, n, C], a part at a time: sums of exponentials are kept beside
    the largest exponent so far and made smaller as it grows (Rabe and Staats 2021)."""
    most, total, out = -torch.inf, 0.0, 0.0
    with torch.autocast("cuda" if q.is_cuda else "cpu", enabled=False):  # an exponent has no digits to lose
        for k, v in zip(keys, values):
            scores = upcast(q) @ upcast(k).mT * q.shape[-1] ** -0.5
            least, most = most, scores.amax(-1, keepdim=True).clamp(min=most)
            weights, fade = (scores - most).exp(), (least - most).exp()
            total = total * fade + weights.sum(-1, keepdim=True)
            out = out * fade + weights @ upcast(v)
        return (out / total).to(q.dtype)


def upsample(block: Upsample, x: Strips) -> Strips:
    done = x.others()
    for i, strip in enumerate(convolved(block.conv, x, lambda s: F.interpolate(s, scale_factor=2, mode="nearest"))):
        x[i] = None
        done.append(strip)
    return done


def downsample(block: Downsample, x: Strips) -> Strips:
    done = x.others()
    for i, strip in enumerate(x):
        below = x[i + 1][:, :, :1] if i + 1 < len(x) else torch.zeros_like(strip[:, :, :1])
        rows = F.pad(torch.cat([strip, below], dim=2), (0, 1))
        x[i] = None
        done.append(F.conv2d(rows, block.conv.weight, block.conv.bias, stride=2))
    return done


LAYERS = {
    nn.Conv2d: convolve, ResBlock: residual, Attention: attend, Upsample: upsample, Downsample: downsample,
    nn.Identity: lambda block, x: x,
}  # fmt: skip
