"""A network run on tiles."""

import torch
from torch import nn

from latentdiff.conditioning.cond import Cond
from latentdiff.diffusion.tiling import level, patchwise
from latentdiff.diffusion.unet import UNet, UNetConfig


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


FIRST = torch.zeros(2)  # the t at which tiles begin with the picture
X, T, COND = drawn(2, 3, 20, 12), torch.tensor([5.0, 700.0]), Cond(concat=drawn(2, 2, 20, 12, seed=1))


def test_a_network_that_looks_at_single_places_sees_no_tiles():
    def network(x, t, cond):
        return x.sin() * t.view(-1, 1, 1, 1) + cond.concat.sum(1, keepdim=True)

    assert torch.allclose(patchwise(network, 8, 3)(X, T, COND), network(X, T, COND), rtol=1e-5, atol=1e-4)


def test_a_network_that_looks_around_is_itself_far_from_the_borders_of_tiles():
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 3, 3, padding=1)
    network = lambda x, t, cond: conv(torch.cat([x, cond.concat], 1))  # noqa: E731
    x, cond = X[..., :8], COND.map(lambda c: c[..., :8])  # tiles are rows 0 to 7, 6 to 13 and 12 to 19
    error = (patchwise(network, 8, 2)(x, FIRST, cond) - network(x, FIRST, cond)).abs().amax((0, 1, 3))
    assert set(error.gt(1e-5).nonzero().flatten().tolist()) == {6, 7, 12, 13}


def test_one_tile_that_holds_all_is_the_network_itself():
    torch.manual_seed(0)
    config = UNetConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), norm_groups=4)
    unet = UNet(config, 5, 3)
    for p in unet.parameters():
        nn.init.normal_(p, std=0.1)
    assert torch.allclose(patchwise(unet, 32, 8)(X, T, COND), unet(X, T, COND), atol=1e-6)
    assert not torch.allclose(patchwise(unet, 8, 2)(X, T, COND), unet(X, T, COND), atol=1e-3)


def test_tiles_are_seen_one_at_a_time():
    seen = []

    def network(x, t, cond):
        seen.append(tuple(x.shape[2:]))
        return x

    patchwise(network, 8, 2)(X, FIRST, COND)
    assert set(seen) == {(8, 8)} and len(seen) == 6


def test_level_noise_is_noise_whose_means_are_alike():
    noise = drawn(2, 3, 70, 96)
    even = level(noise, 32)
    assert level(noise, 96) is noise
    assert torch.allclose(even.mean((2, 3)), noise.mean((2, 3)), atol=1e-3)
    assert torch.allclose(even.std((2, 3)), noise.std((2, 3)), rtol=1e-3)
    assert (even - noise).std() < 1.05 / 8  # squares of 8 x 8 have no more to lose
    spread = [torch.nn.functional.avg_pool2d(x, 32).std((2, 3)) for x in (noise, even)]
    assert spread[1].mean() < 0.4 * spread[0].mean()


def test_tiles_of_level_noise_decide_alike():
    """The ground is what the mean of a tile is nearest to; in plain noise the tiles fall out over it."""
    network = lambda x, t, cond: (x.mean((2, 3), keepdim=True) > -0.05).float().expand_as(x)  # noqa: E731
    plain = drawn(1, 1, 128, 128)
    plain -= plain.mean()
    grounds = [patchwise(network, 16, 4)(x, FIRST, Cond()) for x in (plain, level(plain, 16))]
    assert grounds[0].mean() < 0.85 and grounds[1].mean() > 0.95


def test_tiles_lie_elsewhere_at_every_t_and_at_the_same_places_whenever_it_is_that_t():
    def ends(t):
        x, t = torch.zeros(1, 3, 40, 8), torch.tensor([t])
        step = lambda x, t, cond: torch.arange(8.0).view(1, 1, 8, 1).expand_as(x)  # noqa: E731
        return patchwise(step, 8, 0)(x, t, Cond()).diff(dim=2)[0, 0, :, 0].lt(0).nonzero().flatten().tolist()

    assert ends(0.0) == [7, 15, 23, 31] and ends(700.0) == ends(700.0)
    assert len({tuple(ends(t)) for t in (0.0, 50.0, 100.0, 150.0, 200.0)}) >= 4
