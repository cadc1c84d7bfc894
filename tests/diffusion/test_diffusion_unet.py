"""The U-Net: published sizes, gradients, doors, sizes and precisions."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.diffusion.unet import Layers, UNet, UNetConfig
from latentdiff.layers import attention, sincos_pos_embed_2d

TINY = UNetConfig(channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, norm_groups=4)

PUBLISHED = [  # parameters, config, in_channels, out_channels, context_dim (paper.md's counts of the original classes)
    (274_056_163, UNetConfig(224, (1, 2, 3, 4), attention_levels=(1, 2, 3), head_channels=32), 3, 3, None),
    (
        294_966_916,
        UNetConfig(192, (1, 2, 2, 4, 4), attention_levels=(0, 1, 2, 3), scale_shift_norm=True, resblock_updown=True),
        4,
        4,
        None,
    ),
    (394_984_196, UNetConfig(256, (1, 2, 4), num_heads=1), 4, 4, 512),
    (400_920_579, UNetConfig(192, (1, 2, 3, 5), attention_levels=(1, 2, 3), num_heads=1), 3, 3, 512),
    (872_300_484, UNetConfig(), 4, 4, 1280),
    (403_623_939, UNetConfig(192, (1, 2, 3, 5), attention_levels=(1, 2, 3), num_heads=1), 3, 3, 640),
    (
        246_277_379,
        UNetConfig(128, (1, 2, 3, 4), attention_levels=(1, 2, 3), num_heads=1, transformer_depth=3),
        3,
        3,
        512,
    ),
    (113_622_563, UNetConfig(160, (1, 2, 2, 4), attention_levels=(3,), head_channels=32), 6, 3, None),
    (387_245_827, UNetConfig(256, (1, 2, 3, 4), attention_levels=(1, 2, 3), resblock_updown=True), 7, 3, None),
    (215_229_315, UNetConfig(128, (1, 4, 8), attention_levels=()), 6, 3, None),
]


@pytest.mark.parametrize(
    ("count", "config", "c_in", "c_out", "context_dim"), PUBLISHED, ids=lambda value: str(value)[:12]
)
def test_the_published_networks_have_their_published_size(count, config, c_in, c_out, context_dim) -> None:
    with torch.device("meta"):
        model = UNet(config, c_in, c_out, context_dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def filled(model: UNet, scale: float = 1.0) -> UNet:
    """Noise in every weight, so that nothing hides behind an initial zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(scale * noise / max(1, parameter[0].numel()) ** 0.5)
    return model.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


T = torch.tensor([10.0, 700.5])


@pytest.mark.parametrize("context_dim", [None, 6])
@pytest.mark.parametrize("changes", [{}, {"scale_shift_norm": True, "resblock_updown": True}])
def test_every_parameter_learns_after_two_steps(context_dim: int | None, changes: dict) -> None:
    torch.manual_seed(0)
    model = UNet(replace(TINY, **changes), 3, 3, context_dim, vector_dim=5)
    cond = Cond(context=None if context_dim is None else noise(2, 4, 6), vector=noise(2, 5))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        (model(noise(2, 3, 8, 8), T, cond) - noise(2, 3, 8, 8)).square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        optimiser.step()
    still = [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9]
    assert still == []


def test_one_context_token_is_attended_to_by_everyone_alike() -> None:
    model, token = filled(UNet(TINY, 3, 3, 6)), noise(2, 1, 6)
    model(noise(2, 3, 8, 8), T, Cond(context=token)).square().mean().backward()
    for name, parameter in model.named_parameters():
        quiet = any(part in name for part in ("attn2.q", "attn2.k", "norm2")) and "attention" in name
        assert (parameter.grad.abs().max() < 1e-6 * max(1, parameter.abs().max())) == quiet, name


def test_an_untrained_unet_gives_zero() -> None:
    assert UNet(TINY, 3, 2)(noise(2, 3, 8, 8), T).abs().max() == 0


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 8), (7, 3), (2, 9)])
def test_any_height_and_width_come_back(size: tuple[int, int], updown: bool) -> None:
    config = replace(TINY, resblock_updown=updown)
    assert filled(UNet(config, 3, 3))(noise(2, 3, *size), T).shape == (2, 3, *size)


def test_patches_are_channels_of_fewer_places() -> None:
    """With the same weights: what patch=2 makes of a picture is what patch=1 makes of its squares."""
    small, large = UNet(replace(TINY, patch=2), 3, 3), UNet(TINY, 12, 12)
    large.load_state_dict(filled(small).state_dict())
    x = noise(2, 3, 16, 8)
    got = small(x, T)
    assert got.shape == x.shape and got.std() > 0
    assert torch.equal(F.pixel_unshuffle(got, 2), large.eval()(F.pixel_unshuffle(x, 2), T))
    with pytest.raises(UserError, match="unet.patch_size is 2; it must divide the latent's sides, 7x8"):
        small(noise(2, 3, 7, 8), T)


def test_a_masked_context_token_changes_nothing() -> None:
    model, context = filled(UNet(TINY, 3, 3, 6)), noise(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    z = noise(2, 3, 8, 8)
    one = model(z, T, Cond(context=context, context_mask=mask))
    other = context.masked_fill(~mask[..., None], 100.0)
    assert torch.allclose(one, model(z, T, Cond(context=other, context_mask=mask)), atol=1e-6)
    assert torch.allclose(one[:1], model(z[:1], T[:1], Cond(context=context[:1, :2])), atol=1e-5)
    assert not torch.allclose(one, model(z, T, Cond(context=other)), atol=1e-2)


def test_every_door_reaches_the_output() -> None:
    model, z = filled(UNet(TINY, 5, 3, 6, vector_dim=7)), noise(2, 3, 8, 8)
    cond = Cond(concat=noise(2, 2, 8, 8), context=noise(2, 4, 6), vector=noise(2, 7))
    out = model(z, T, cond)
    for door in ("concat", "context", "vector"):
        changed = replace(cond, **{door: getattr(cond, door).flip(0)})
        assert not torch.allclose(out, model(z, T, changed), atol=1e-3), door
    assert not torch.allclose(out, model(z, T.flip(0), cond), atol=1e-3)


def test_a_missing_context_is_named() -> None:
    with pytest.raises(AssertionError, match="context is missing"):
        UNet(TINY, 3, 3, 6)(noise(2, 3, 8, 8), T)


def test_float64_stays_float64_and_autocast_stays_close() -> None:
    model, z, cond = filled(UNet(TINY, 3, 3, 6)), noise(2, 3, 8, 8), Cond(context=noise(2, 4, 6))
    exact = model.double()(z.double(), T.double(), cond.map(Tensor.double))
    assert exact.dtype == torch.float64
    single = model.float()(z, T, cond)
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(z, T, cond)
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_keeps_its_precision_and_equals_its_equation(dtype: torch.dtype) -> None:
    q, k, v = (noise(2, n, 8).to(dtype) for n in (5, 3, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        got = attention(q, k, v, 2, mask)
    heads = [x.double().unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].mT / 2).masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
    want = (weights @ heads[2]).transpose(1, 2).flatten(2)
    assert got.dtype == dtype
    assert torch.allclose(got.double(), want, atol={torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 0.02))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "unet.num_heads is 3"),
        ({"head_channels": 5}, "unet.head_channels is 5"),
        ({"norm_groups": 5}, "unet.norm_groups is 5"),
        ({"attention_levels": (2,)}, "levels are 0 to 1"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"patch": 0}, "unet.patch_size is 0"),
    ],
)
def test_a_config_of_no_network_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(replace(TINY, **changes), 3, 3)


@pytest.mark.parametrize("blocks", ["classic", "modern"])
@pytest.mark.parametrize("context_dim", [None, 5])
def test_with_positions_attention_tells_equal_places_apart_and_without_it_cannot(context_dim, blocks):
    spread = {}
    for positions in (True, False):
        torch.manual_seed(0)
        layers = Layers(replace(TINY, positions=positions, blocks=blocks), context_dim)
        attend = layers.attention(16).double()
        for parameter in attend.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        cond = Cond(context=torch.randn(2, 3, 5, dtype=torch.float64) if context_dim else None)
        h = attend(torch.ones(2, 16, 4, 6, dtype=torch.float64), None, cond)
        spread[positions] = h.flatten(2).std(dim=2).max().item()
    assert spread[False] < 1e-12
    assert spread[True] > 0.1


def test_places_are_shares_of_the_picture_and_all_differ():
    small, large = (sincos_pos_embed_2d(n, 2 * n, 16, torch.zeros(1, dtype=torch.float64)) for n in (4, 12))
    assert torch.cdist(small, small).add(torch.eye(32) * 9).min() > 0.1
    every_third = large.unflatten(0, (12, 24))[1::3, 1::3].flatten(0, 1)  # the cells with the same centres
    assert torch.allclose(small, every_third, atol=1e-6)


def test_positions_that_cannot_be_are_refused():
    odd = replace(TINY, channels=18, norm_groups=2, channel_mult=(1,), attention_levels=(0,), num_heads=2)
    with pytest.raises(UserError, match="positions"):
        UNet(replace(odd, positions=True), 3, 3)
