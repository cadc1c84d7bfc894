"""Tiled encoding and decoding: equal results with less memory."""

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

WITH_ATTENTION = AutoencoderConfig(channels=8, channel_mult=(1, 2, 2), num_res_blocks=1, attention_levels=(2,),
                                   norm_groups=4)  # fmt: skip
CONFIGS = {
    "kl": WITH_ATTENTION,
    "vq": AutoencoderConfig(channels=8, channel_mult=(2, 1), num_res_blocks=2, bottleneck=VQConfig(codebook_size=16),
                            mid_attention=False, norm_groups=4),
    "flat": AutoencoderConfig(channels=8, channel_mult=(1,), num_res_blocks=1, bottleneck=IdentityConfig(),
                              norm_groups=8),
}  # fmt: skip


def build(config: AutoencoderConfig) -> Autoencoder:
    torch.manual_seed(0)
    autoencoder = Autoencoder(config).eval().requires_grad_(False)
    for name, p in autoencoder.named_parameters():
        if "norm" in name:  # so that no norm has the default weights
            torch.nn.init.normal_(p, mean=1.0, std=0.3)
    autoencoder.set_latent_stats(0.3, 1.7)
    return autoencoder


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


TILINGS = [
    *(partial(tiling.exact, rows=rows) for rows in (1, 3, 50)),
    *(partial(tiling.offloaded, positions=positions) for positions in (4, 16, 4096)),
]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tiled", TILINGS)
def test_tiled_decoding_equals_untiled_decoding(name: str, tiled: Callable) -> None:
    autoencoder = build(CONFIGS[name])
    z = noise(2, autoencoder.z_channels, 7, 5)
    expected = autoencoder.decode(z)
    autoencoder.tiling = tiled
    assert (autoencoder.decode(z) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("tiled", TILINGS)
def test_tiled_encoding_equals_untiled_encoding(name: str, tiled: Callable) -> None:
    autoencoder = build(CONFIGS[name])
    x = noise(2, 3, 7 * autoencoder.factor, 5 * autoencoder.factor)
    expected = autoencoder.encode(x)
    autoencoder.tiling = tiled
    assert (autoencoder.encode(x) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_gradient_equals_that_of_untiled_decoding() -> None:
    """Guidance by an image needs it."""
    autoencoder, z = build(WITH_ATTENTION), noise(1, 4, 7, 5).requires_grad_()
    (expected,) = torch.autograd.grad(autoencoder.decode(z).square().sum(), z)
    autoencoder.tiling = tiling.exact
    (actual,) = torch.autograd.grad(autoencoder.decode(z).square().sum(), z)
    assert torch.equal(actual, expected)


def test_chunked_attention_equals_attention() -> None:
    """Also if the largest scores come last and are far above the others."""
    q, k, v = noise(3, 2, 40, 8).double() * 4
    k[:, 30:] *= 20
    chunks = [tiling.Strips(x.split(7, dim=1)) for x in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(tiling.chunked_attention(q, *chunks), expected, atol=1e-5)


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_the_files_of_offloaded_strips_are_deleted_as_soon_as_they_are_used(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    autoencoder, bytes_on_disk, write = build(WITH_ATTENTION), [], tiling.OffloadedTensor.__init__
    x = noise(1, 4, 16, 8) if method == "decode" else noise(1, 3, 64, 32)

    def record(*args) -> None:
        write(*args)
        bytes_on_disk.append(sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file()))

    monkeypatch.setattr(tiling.OffloadedTensor, "__init__", record)
    autoencoder.tiling = partial(tiling.offloaded, positions=8)
    getattr(autoencoder, method)(x)
    largest = 4 * 16 * 64 * 32  # bytes of the largest feature map; a residual block needs two
    assert largest / 2 < max(bytes_on_disk) < 3 * largest < len(bytes_on_disk) * largest
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_full_disk_and_no_file_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(torch, "save", full)
    autoencoder = build(WITH_ATTENTION)
    autoencoder.tiling = tiling.offloaded
    with pytest.raises(UserError, match=f"{tmp_path}.*No space left.*TMPDIR"):
        autoencoder.decode(noise(1, 4, 16, 8))
    assert not list(tmp_path.iterdir())


def test_norm_statistics_of_a_single_strip_would_differ() -> None:
    """The image is brighter at the bottom; with a homogeneous image the tests above would prove nothing."""
    autoencoder = build(WITH_ATTENTION)
    z = noise(1, 4, 16, 8) + torch.linspace(-2, 2, 16).view(1, 1, -1, 1)
    expected = autoencoder.decode(z)
    halves = torch.cat([autoencoder.decode(half) for half in z.split(8, dim=2)], dim=2)
    autoencoder.tiling = tiling.exact
    assert (autoencoder.decode(z) - expected).abs().max() < 1e-4
    assert (halves - expected)[:, :, :8].abs().max() > 0.05  # far from the cut


def test_norm_statistics_are_accurate_for_a_large_mean() -> None:
    norm, x = torch.nn.GroupNorm(4, 8), 1000 + noise(1, 8, 32, 16)
    scale, shift = tiling.norm_scale_shift(norm, tiling.Strips(x.double().split(5, dim=2)))
    assert torch.allclose(x.double() * scale + shift, norm.double()(x.double()), atol=1e-6)


def test_pixel_space_is_unchanged_and_sizes_are_checked() -> None:
    pixels = Autoencoder(AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig()))
    x, autoencoder = noise(1, 3, 6, 6), build(WITH_ATTENTION)
    for pixels.tiling in (tiling.exact, tiling.offloaded, tiling.blended):
        assert torch.equal(pixels.decode(x), x) and torch.equal(pixels.encode(x), x)
    for autoencoder.tiling in (tiling.exact, tiling.offloaded, tiling.blended):
        with pytest.raises(UserError, match="multiples of 4"):
            autoencoder.encode(noise(1, 3, 10, 8))


def without_norms(config: AutoencoderConfig) -> Autoencoder:
    """An autoencoder whose tiles differ only at their borders, which have small weights."""
    autoencoder = build(config)
    for module in autoencoder.modules():
        for name in ("norm1", "norm2", "norm_out"):
            if hasattr(module, name):
                setattr(module, name, torch.nn.Identity())
    autoencoder.encoder.mid = autoencoder.decoder.mid = torch.nn.Identity()
    return autoencoder


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_without_norms_blended_tiles_equal_the_untiled_result(method: str) -> None:
    autoencoder, x = without_norms(CONFIGS["flat"]), noise(1, 4 if method == "decode" else 3, 40, 24)
    run = getattr(autoencoder, method)
    expected = run(x)
    autoencoder.tiling = partial(tiling.blended, tile=24, overlap=16)
    error = (run(x) - expected).abs().amax((0, 1, 3))
    assert error[:8].max() < 1e-5 and error[32:].max() < 1e-5  # a single tile, far from its border
    autoencoder.tiling = partial(tiling.blended, tile=40, overlap=0)
    assert (run(x) - expected).abs().max() < 1e-5


def test_blended_tiles_are_at_the_right_position_for_any_factor() -> None:
    """In the middle of a tile, far from its borders, the results are equal."""
    autoencoder = without_norms(AutoencoderConfig(channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4))
    z = noise(1, 4, 40, 24)
    x = autoencoder.decode(z)
    latent = autoencoder.encode(x)
    autoencoder.tiling = partial(tiling.blended, tile=24, overlap=8)
    assert autoencoder.decode(z).shape == x.shape and autoencoder.encode(x).shape == latent.shape == z.shape
    assert (autoencoder.decode(z) - x)[:, :, :32].abs().max() < 1e-5
    assert (autoencoder.encode(x) - latent)[:, :, :8].abs().max() < 1e-5


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes that tensors created inside occupy at once."""

    def __init__(self) -> None:
        super().__init__()
        self.storages, self.current, self.peak = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.storages:
                self.storages[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.free, storage._cdata)
                self.current += storage.nbytes()
                self.peak = max(self.peak, self.current)
        return out

    def free(self, storage: int) -> None:
        self.current -= self.storages.pop(storage)


def peak(function: Callable, x: Tensor) -> int:
    with torch.no_grad(), PeakMemory() as memory:
        function(x)
    return memory.peak


@pytest.mark.parametrize("config", [
    AutoencoderConfig(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, mid_attention=False, norm_groups=8),
    AutoencoderConfig(channels=16, channel_mult=(1, 2, 4, 4), norm_groups=8),
], ids=["demo", "published"])  # fmt: skip
def test_exact_tiling_takes_half_the_memory_and_blended_tiling_a_quarter(config: AutoencoderConfig) -> None:
    with torch.device("meta"):
        model = Autoencoder(config).eval()
        z, x = torch.empty(1, 4, 512 // model.factor, 256 // model.factor), torch.empty(1, 3, 512, 256)
    untiled = peak(model.decode, z), peak(model.encode, x)
    model.tiling = partial(tiling.exact, rows=4)
    assert peak(model.decode, z) < untiled[0] / 2 and peak(model.encode, x) < 0.6 * untiled[1]
    model.tiling = partial(tiling.blended, tile=16, overlap=4)
    assert peak(model.decode, z) < untiled[0] / 4 and peak(model.encode, x) < untiled[1] / 4


BOUNDED = [
    (partial(tiling.blended, tile=16, overlap=4), (64, 256)),
    (partial(tiling.offloaded, positions=1024), (64, 128)),
]


@pytest.mark.parametrize(("tiled", "sides"), BOUNDED, ids=["blended", "offloaded"])
@pytest.mark.parametrize("method", ["decode", "encode"])
def test_memory_beside_the_image_does_not_grow_with_the_image(
    method: str, tiled: Callable, sides: tuple[int, int]
) -> None:
    config = AutoencoderConfig(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8)
    with torch.device("meta"):
        model = Autoencoder(config).eval()
        latents, images = ([torch.empty(1, c, f * side, f * side) for side in sides] for c, f in ((4, 1), (3, 4)))
    inputs = latents if method == "decode" else images
    allowed = sum(large.nbytes - small.nbytes for small, large in (images, *[latents] * 5))
    growth = []
    for model.tiling in (tiled, tiling.exact):
        small, large = (peak(getattr(model, method), x) for x in inputs)
        growth.append(large - small)
    assert growth[0] < allowed < growth[1] / 3
