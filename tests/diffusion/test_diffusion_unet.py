"""The U-Net: published sizes, gradients, condition inputs, image sizes and dtypes."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.diffusion.unet import UNet, UNetConfig, attention_block
from latentdiff.layers import attention, sincos_pos_embed_2d

TINY = UNetConfig(channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), num_heads=2, norm_groups=4)

PUBLISHED = [  # parameters, config, in_channels, out_channels, context_dim (counted from the original classes)
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
def test_the_published_networks_have_their_published_parameter_count(count, config, c_in, c_out, context_dim) -> None:
    with torch.device("meta"):
        model = UNet(config, c_in, c_out, context_dim)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def randomize(model: UNet, scale: float = 1.0) -> UNet:
    """Random weights in all layers, also in those that are initialized to zero."""
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
def test_every_parameter_gets_a_gradient_after_two_steps(context_dim: int | None, changes: dict) -> None:
    torch.manual_seed(0)
    model = UNet(replace(TINY, **changes), 3, 3, context_dim, vector_dim=5)
    cond = Cond(context=None if context_dim is None else noise(2, 4, 6), vector=noise(2, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (model(noise(2, 3, 8, 8), T, cond) - noise(2, 3, 8, 8)).square().mean().backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(gradient is not None for gradient in gradients.values())
        optimizer.step()
    assert [name for name, gradient in gradients.items() if gradient.abs().max() < 1e-9] == []


def test_with_a_single_context_token_queries_and_keys_of_cross_attention_get_no_gradient() -> None:
    model, token = randomize(UNet(TINY, 3, 3, 6)), noise(2, 1, 6)
    model(noise(2, 3, 8, 8), T, Cond(context=token)).square().mean().backward()
    for name, parameter in model.named_parameters():
        unused = any(part in name for part in ("attn2.q", "attn2.k", "norm2")) and "attention" in name
        assert (parameter.grad.abs().max() < 1e-6 * max(1, parameter.abs().max())) == unused, name


def test_the_output_at_initialization_is_zero() -> None:
    assert UNet(TINY, 3, 2)(noise(2, 3, 8, 8), T).abs().max() == 0


@pytest.mark.parametrize("updown", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (5, 8), (7, 3), (2, 9)])
def test_the_output_has_the_height_and_width_of_the_input(size: tuple[int, int], updown: bool) -> None:
    config = replace(TINY, resblock_updown=updown)
    assert randomize(UNet(config, 3, 3))(noise(2, 3, *size), T).shape == (2, 3, *size)


def test_patches_are_channels() -> None:
    """With the same weights, patch_size=2 on an image equals patch_size=1 on its patches as channels."""
    patched, plain = UNet(replace(TINY, patch_size=2), 3, 3), UNet(TINY, 12, 12)
    plain.load_state_dict(randomize(patched).state_dict())
    x = noise(2, 3, 16, 8)
    output = patched(x, T)
    assert output.shape == x.shape and output.std() > 0
    assert torch.equal(F.pixel_unshuffle(output, 2), plain.eval()(F.pixel_unshuffle(x, 2), T))
    with pytest.raises(UserError, match="unet.patch_size is 2; it must divide the latent's sides, 7x8"):
        patched(noise(2, 3, 7, 8), T)


def test_a_masked_context_token_changes_nothing() -> None:
    model, context = randomize(UNet(TINY, 3, 3, 6)), noise(2, 4, 6)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    z = noise(2, 3, 8, 8)
    output = model(z, T, Cond(context=context, context_mask=mask))
    changed = context.masked_fill(~mask[..., None], 100.0)
    assert torch.allclose(output, model(z, T, Cond(context=changed, context_mask=mask)), atol=1e-6)
    assert torch.allclose(output[:1], model(z[:1], T[:1], Cond(context=context[:1, :2])), atol=1e-5)
    assert not torch.allclose(output, model(z, T, Cond(context=changed)), atol=1e-2)


def test_every_condition_input_changes_the_output() -> None:
    model, z = randomize(UNet(TINY, 5, 3, 6, vector_dim=7)), noise(2, 3, 8, 8)
    cond = Cond(concat=noise(2, 2, 8, 8), context=noise(2, 4, 6), vector=noise(2, 7))
    output = model(z, T, cond)
    for name in ("concat", "context", "vector"):
        changed = replace(cond, **{name: getattr(cond, name).flip(0)})
        assert not torch.allclose(output, model(z, T, changed), atol=1e-3), name
    assert not torch.allclose(output, model(z, T.flip(0), cond), atol=1e-3)


def test_the_features_are_the_output_of_the_middle_block_and_do_not_change_the_prediction() -> None:
    model, z, outputs = randomize(UNet(TINY, 3, 3)), noise(2, 3, 8, 8), []
    model.middle.register_forward_hook(lambda module, args, output: outputs.append(output))
    prediction, features = model(z, T, return_features=True)
    assert torch.equal(prediction, model(z, T))
    assert features.shape == (2, 32, 4, 4) and torch.equal(features, outputs[0])


def test_projected_keys_and_values_give_the_same_output_as_the_context() -> None:
    model, z, cond = randomize(UNet(TINY, 3, 3, 6)), noise(2, 3, 8, 8), Cond(context=noise(2, 4, 6))
    assert torch.equal(model(z, T, model.project_kv(cond)), model(z, T, cond))


def test_a_missing_context_is_named() -> None:
    with pytest.raises(AssertionError, match="context is missing"):
        UNet(TINY, 3, 3, 6)(noise(2, 3, 8, 8), T)


def test_float64_stays_float64_and_autocast_is_close() -> None:
    model, z, cond = randomize(UNet(TINY, 3, 3, 6)), noise(2, 3, 8, 8), Cond(context=noise(2, 4, 6))
    exact = model.double()(z.double(), T.double(), cond.map(Tensor.double))
    assert exact.dtype == torch.float64
    single = model.float()(z, T, cond)
    assert (single - exact).abs().max() < 1e-5 * exact.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        half = model(z, T, cond)
    assert half.dtype == torch.bfloat16 and (half - exact).abs().max() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_attention_keeps_its_dtype_and_equals_its_equation(dtype: torch.dtype) -> None:
    q, k, v = (noise(2, n, 8).to(dtype) for n in (5, 3, 3))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = attention(q, k, v, 2, mask)
    heads = [x.double().unflatten(-1, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    weights = (heads[0] @ heads[1].mT / 2).masked_fill(~mask[:, None, None], -torch.inf).softmax(dim=-1)
    expected = (weights @ heads[2]).transpose(1, 2).flatten(2)
    assert output.dtype == dtype
    assert torch.allclose(output.double(), expected, atol={torch.float64: 1e-12, torch.float32: 1e-6}.get(dtype, 0.02))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "unet.num_heads is 3"),
        ({"head_channels": 5}, "unet.head_channels is 5"),
        ({"norm_groups": 5}, "unet.norm_groups is 5"),
        ({"attention_levels": (2,)}, "levels are 0 to 1"),
        ({"channel_mult": ()}, "channel_mult is empty"),
        ({"patch_size": 0}, "unet.patch_size is 0"),
    ],
)
def test_an_invalid_config_is_refused_by_name(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        UNet(replace(TINY, **changes), 3, 3)


@pytest.mark.parametrize("context_dim", [None, 5])
def test_attention_distinguishes_positions_of_equal_content_only_with_a_positional_embedding(context_dim):
    spread = {}
    for pos_embed in (True, False):
        torch.manual_seed(0)
        block = attention_block(replace(TINY, pos_embed=pos_embed), 16, context_dim).double()
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        cond = Cond(context=torch.randn(2, 3, 5, dtype=torch.float64) if context_dim else None)
        h = block(torch.ones(2, 16, 4, 6, dtype=torch.float64), None, cond)
        spread[pos_embed] = h.flatten(2).std(dim=2).max().item()
    assert spread[False] < 1e-12
    assert spread[True] > 0.1


def test_positional_embeddings_depend_on_the_relative_position_and_all_differ():
    small, large = (sincos_pos_embed_2d(n, 2 * n, 16, torch.zeros(1, dtype=torch.float64)) for n in (4, 12))
    assert torch.cdist(small, small).add(torch.eye(32) * 9).min() > 0.1
    every_third = large.unflatten(0, (12, 24))[1::3, 1::3].flatten(0, 1)  # the positions with the same centers
    assert torch.allclose(small, every_third, atol=1e-6)


def test_a_positional_embedding_is_refused_at_widths_that_4_does_not_divide():
    odd = replace(TINY, channels=18, norm_groups=2, channel_mult=(1,), attention_levels=(0,), num_heads=2)
    with pytest.raises(UserError, match="unet.pos_embed"):
        UNet(replace(odd, pos_embed=True), 3, 3)
