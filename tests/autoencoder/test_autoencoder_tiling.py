"""Tiled decoding and encoding: the same numbers, less memory."""

import tempfile
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, VQConfig
from latentdiff.config import UserError

ATTENDING = AutoencoderConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, attention_levels=(2,),
                              norm_groups=4)  # fmt: skip
CONFIGS = {
    "kl": ATTENDING,
    "vq": AutoencoderConfig(channels=8, channel_mult=(2, 1), num_res_blocks=2, bottleneck=VQConfig(codebook_size=16),
                            mid_attention=False, norm_groups=4),
    "flat": AutoencoderConfig(channels=8, channel_mult=(1,), num_res_blocks=1, bottleneck=IdentityConfig(), norm_groups=8),
}  # fmt: skip


def made(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    for name, p in autoencoder.named_parameters():
        if "norm" in name:  # so that no norm is a plain one
            torch.nn.init.normal_(p, mean=1.0, std=0.3)
    autoencoder.set_statistics(0.3, 1.7)
    return autoencoder


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


WAYS = [partial(tiling.exact, rows=1), partial(tiling.exact, rows=3), partial(tiling.exact, rows=50),
        partial(tiling.spilled, places=4), partial(tiling.spilled, places=16), tiling.spilled]  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("way", WAYS)
def test_tiled_decoding_is_decoding(name: str, way: Callable) -> None:
    autoencoder = made(CONFIGS[name])
    z = drawn(2, autoencoder.z_channels, 7, 5)
    whole = autoencoder.decode(z)
    autoencoder.through = way
    assert (autoencoder.decode(z) - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("way", WAYS)
def test_tiled_encoding_is_encoding(name: str, way: Callable) -> None:
    autoencoder = made(CONFIGS[name])
    x = drawn(2, 3, 7 * autoencoder.factor, 5 * autoencoder.factor)
    whole = autoencoder.encode(x)
    autoencoder.through = way
    assert (autoencoder.encode(x) - whole).abs().max() < 1e-5 * whole.abs().max()


def test_a_gradient_is_that_of_the_whole_picture() -> None:
    """Guidance by a picture asks for it."""
    autoencoder, z = made(ATTENDING), drawn(1, 4, 7, 5).requires_grad_()
    (wanted,) = torch.autograd.grad(autoencoder.decode(z).square().sum(), z)
    autoencoder.through = tiling.exact
    (found,) = torch.autograd.grad(autoencoder.decode(z).square().sum(), z)
    assert torch.equal(found, wanted)


def test_attention_by_parts_is_attention() -> None:
    """Also where the largest exponents come last, and where they are far from those of before."""
    q, k, v = drawn(3, 2, 40, 8).double() * 4
    k[:, 30:] *= 20
    parts = [tiling.Strips(x.split(7, dim=1)) for x in (k, v)]
    wanted = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(tiling.merged(q, *parts), wanted, atol=1e-5)


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_what_waits_lies_in_files_that_are_gone_as_soon_as_it_is_spent(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    autoencoder, most, write = made(ATTENDING), [], tiling.Waiting.__init__
    x = drawn(1, 4, 16, 8) if way == "decode" else drawn(1, 3, 64, 32)

    def watched(*args) -> None:
        write(*args)
        most.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))

    monkeypatch.setattr(tiling.Waiting, "__init__", watched)
    autoencoder.through = partial(tiling.spilled, places=8)
    getattr(autoencoder, way)(x)
    largest = 4 * 16 * 64 * 32  # bytes of the largest map, two of which a residual block needs
    assert largest / 2 < max(most) < 3 * largest < len(most) * largest
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_named_and_nothing_stays_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "save", full)
    autoencoder = made(ATTENDING)
    autoencoder.through = tiling.spilled
    with pytest.raises(UserError, match=f"{tmp_path}.*No space left.*TMPDIR"):
        autoencoder.decode(drawn(1, 4, 16, 8))
    assert not list(tmp_path.iterdir())


def test_statistics_of_a_single_strip_are_not_enough() -> None:
    """What the test above would miss if a picture were alike everywhere: it is brighter below."""
    autoencoder = made(ATTENDING)
    z = drawn(1, 4, 16, 8) + torch.linspace(-2, 2, 16).view(1, 1, -1, 1)
    whole = autoencoder.decode(z)
    halves = torch.cat([autoencoder.decode(half) for half in z.split(8, dim=2)], dim=2)
    autoencoder.through = tiling.exact
    assert (autoencoder.decode(z) - whole).abs().max() < 1e-4
    assert (halves - whole)[:, :, :8].abs().max() > 0.05  # far from the cut


def test_a_large_offset_does_not_spoil_the_statistics() -> None:
    norm, x = torch.nn.GroupNorm(4, 8), 1000 + drawn(1, 8, 32, 16)
    scale, shift = tiling.affine(norm, tiling.Strips(x.double().split(5, dim=2)))
    assert torch.allclose(x.double() * scale + shift, norm.double()(x.double()), atol=1e-6)


def test_pixel_space_passes_through_and_sizes_are_checked() -> None:
    pixels = Autoencoder(AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig()))
    x, latents = drawn(1, 3, 6, 6), made(ATTENDING)
    for pixels.through in (tiling.exact, tiling.spilled, tiling.blended):
        assert torch.equal(pixels.decode(x), x) and torch.equal(pixels.encode(x), x)
    for latents.through in (tiling.exact, tiling.spilled, tiling.blended):
        with pytest.raises(UserError, match="multiples of 4"):
            latents.encode(drawn(1, 3, 10, 8))


def without_norms(config: AutoencoderConfig) -> Autoencoder:
    """Then only the borders of tiles differ, and they weigh little."""
    autoencoder = made(config)
    for module in autoencoder.modules():
        for name in ("norm1", "norm2", "norm_out"):
            if hasattr(module, name):
                setattr(module, name, torch.nn.Identity())
    autoencoder.encoder.mid = autoencoder.decoder.mid = torch.nn.Identity()
    return autoencoder


@pytest.mark.parametrize("way", ["decode", "encode"])
def test_blended_tiles_are_the_whole_where_statistics_do_not_matter(way: str) -> None:
    autoencoder, x = without_norms(CONFIGS["flat"]), drawn(1, 4 if way == "decode" else 3, 40, 24)
    run = getattr(autoencoder, way)
    whole = run(x)
    autoencoder.through = partial(tiling.blended, tile=24, overlap=16)
    error = (run(x) - whole).abs().amax((0, 1, 3))
    assert error[:8].max() < 1e-5 and error[32:].max() < 1e-5  # a single tile, too far to feel its border
    autoencoder.through = partial(tiling.blended, tile=40, overlap=0)
    assert (run(x) - whole).abs().max() < 1e-5


def test_blended_tiles_lie_where_they_belong_at_any_factor() -> None:
    """Far from all borders but in the middle of a tile, what a tile shows is what the whole shows there."""
    autoencoder = without_norms(AutoencoderConfig(channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4))
    z = drawn(1, 4, 40, 24)
    x = autoencoder.decode(z)
    latent = autoencoder.encode(x)
    autoencoder.through = partial(tiling.blended, tile=24, overlap=8)
    assert autoencoder.decode(z).shape == x.shape and autoencoder.encode(x).shape == latent.shape == z.shape
    assert (autoencoder.decode(z) - x)[:, :, :32].abs().max() < 1e-5
    assert (autoencoder.encode(x) - latent)[:, :, :8].abs().max() < 1e-5


class Live(TorchDispatchMode):
    """The largest number of bytes that tensors made inside hold at once."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.held:
                self.held[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return out

    def free(self, name: int) -> None:
        self.now -= self.held.pop(name)


def peak(function: Callable, x: Tensor) -> int:
    with torch.no_grad(), Live() as live:
        function(x)
    return live.most


@pytest.mark.parametrize("config", [
    AutoencoderConfig(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, mid_attention=False, norm_groups=8),
    AutoencoderConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_groups=8),
], ids=["demo", "like the published"])  # fmt: skip
def test_tiles_take_half_the_memory_and_blended_ones_a_quarter(config: AutoencoderConfig) -> None:
    with torch.device("meta"):
        ours = Autoencoder(config).eval()
        z, x = torch.empty(1, 4, 512 // ours.factor, 256 // ours.factor), torch.empty(1, 3, 512, 256)
    whole = peak(ours.decode, z), peak(ours.encode, x)
    ours.through = partial(tiling.exact, rows=4)
    assert peak(ours.decode, z) < whole[0] / 2 and peak(ours.encode, x) < 0.6 * whole[1]
    ours.through = partial(tiling.blended, tile=16, overlap=4)
    assert peak(ours.decode, z) < whole[0] / 4 and peak(ours.encode, x) < whole[1] / 4


BOUNDED = [(partial(tiling.blended, tile=16, overlap=4), (64, 256)), (partial(tiling.spilled, places=1024), (64, 128))]


@pytest.mark.parametrize(("through", "sides"), BOUNDED, ids=["blended", "spilled"])
@pytest.mark.parametrize("way", ["decode", "encode"])
def test_these_take_no_more_beside_the_picture_however_large_it_is(
    way: str, through: Callable, sides: tuple[int, int]
) -> None:
    config = AutoencoderConfig(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8)
    with torch.device("meta"):
        ours = Autoencoder(config).eval()
        latents, pictures = ([torch.empty(1, c, f * side, f * side) for side in sides] for c, f in ((4, 1), (3, 4)))
    given = latents if way == "decode" else pictures
    more = sum(large.nbytes - small.nbytes for small, large in (pictures, *[latents] * 5))
    growth = []
    for ours.through in (through, tiling.exact):
        small, large = (peak(getattr(ours, way), x) for x in given)
        growth.append(large - small)
    assert growth[0] < more < growth[1] / 3
