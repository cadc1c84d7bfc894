"""A network run on tiles."""

import torch
from torch import nn

from latentdiff.conditioning.cond import Cond
from latentdiff.diffusion.tiling import equalize_tile_means, patchwise
from latentdiff.diffusion.unet import UNet, UNetConfig


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FIRST = 0.0  # the t at which the first tile starts at the border
X, T, COND = randn(2, 3, 20, 12), torch.tensor([5.0, 700.0]), Cond(concat=randn(2, 2, 20, 12, seed=1))


def test_a_pointwise_network_gives_the_same_output_with_and_without_tiles():
    def network(x, t, cond):
        return x.sin() * t.view(-1, 1, 1, 1) + cond.concat.sum(1, keepdim=True)

    assert torch.allclose(patchwise(network, 8, 3)(X, T, COND), network(X, T, COND), rtol=1e-5, atol=1e-4)


def test_a_convolution_differs_only_at_the_borders_of_tiles():
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1)
    network = lambda x, t, cond: conv(torch.cat([x, cond.concat], 1))  # noqa: E731
    x, cond = X[..., :8], COND.map(lambda c: c[..., :8])  # tiles are rows 0 to 7, 6 to 13 and 12 to 19
    error = (patchwise(network, 8, 2)(x, FIRST, cond) - network(x, T, cond)).abs().amax((0, 1, 3))
    assert set(error.gt(1e-5).nonzero().flatten().tolist()) == {6, 7, 12, 13}


def test_a_single_tile_is_the_network_itself():
    torch.manual_seed(0)
    config = UNetConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), norm_groups=4)
    unet = UNet(config, 5, 3)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.1)
    assert torch.allclose(patchwise(unet, 32, 8)(X, T, COND), unet(X, T, COND), atol=1e-6)
    assert not torch.allclose(patchwise(unet, 8, 2)(X, T, COND), unet(X, T, COND), atol=1e-3)


def test_tiles_are_computed_one_at_a_time():
    shapes = []

    def network(x, t, cond):
        shapes.append((tuple(x.shape[2:]), tuple(t.shape)))
        return x

    patchwise(network, 8, 2)(X, FIRST, COND)
    assert set(shapes) == {((8, 8), (2,))} and len(shapes) == 6


def test_equalized_noise_keeps_its_mean_and_standard_deviation_and_has_similar_local_means():
    noise = randn(2, 3, 70, 96)
    equalized = equalize_tile_means(noise, 32)
    assert equalize_tile_means(noise, 96) is noise
    assert torch.allclose(equalized.mean((2, 3)), noise.mean((2, 3)), atol=1e-3)
    assert torch.allclose(equalized.std((2, 3)), noise.std((2, 3)), rtol=1e-3)
    assert (equalized - noise).std() < 1.05 / 8  # the standard deviation of means over 8 x 8
    spread = [torch.nn.functional.avg_pool2d(x, 32).std((2, 3)) for x in (noise, equalized)]
    assert spread[1].mean() < 0.4 * spread[0].mean()


def test_tiles_of_equalized_noise_agree():
    """For a network that outputs a function of the mean of its input; with plain noise the tiles disagree."""
    network = lambda x, t, cond: (x.mean((2, 3), keepdim=True) > -0.05).float().expand_as(x)  # noqa: E731
    noise = randn(1, 1, 128, 128)
    noise -= noise.mean()
    outputs = [patchwise(network, 16, 4)(x, FIRST, Cond()) for x in (noise, equalize_tile_means(noise, 16))]
    assert outputs[0].mean() < 0.85 and outputs[1].mean() > 0.95


def test_tiles_move_with_t_and_are_the_same_at_the_same_t():
    def ends(t):
        x = torch.zeros(1, 3, 40, 8)
        step = lambda x, t, cond: torch.arange(8.0).view(1, 1, 8, 1).expand_as(x)  # noqa: E731
        return patchwise(step, 8, 0)(x, t, Cond()).diff(dim=2)[0, 0, :, 0].lt(0).nonzero().flatten().tolist()

    assert ends(0.0) == [7, 15, 23, 31] and ends(700.0) == ends(700.0)
    assert len({tuple(ends(t)) for t in (0.0, 50.0, 100.0, 150.0, 200.0)}) >= 4
