"""The modern blocks: what their parts promise, and that the U-Net takes them."""

import pytest
import torch

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.diffusion.rope_transformer import ModernTransformer, NormedAttention, rotate, rotations
from latentdiff.diffusion.unet import UNet, UNetConfig

TINY = {
    "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (1,), "num_heads": 2,
    "norm_groups": 8,
}  # fmt: skip


def noise(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_a_product_of_rotated_vectors_depends_on_the_difference_of_places_alone():
    q, k = noise(2, 1, 1, 1, 16)
    angles = rotations(5, 7, 16, torch.device("cpu")).double()  # row 0 to 4, column 0 to 6
    at = lambda x, row, column: rotate(x, angles[[7 * row + column]]).flatten()  # noqa: E731
    product = at(q, 1, 2) @ at(k, 3, 5)
    assert torch.allclose(product, at(q, 0, 1) @ at(k, 2, 4))
    assert not torch.allclose(product, at(q, 0, 1) @ at(k, 4, 2))  # rows and columns are told apart
    assert torch.allclose(at(q, 3, 3).norm(), q.norm())


def test_attention_does_not_care_how_long_its_queries_and_keys_are():
    layer = NormedAttention(16, 2, 8).double()
    x, context = noise(1, 5, 16), noise(1, 3, 8)
    before = layer(x, context)
    layer.q.weight.data *= 100
    layer.k.weight.data *= 0.1
    assert torch.allclose(layer(x, context), before, atol=1e-4)


@pytest.mark.parametrize("context", [None, 6])
def test_the_modern_unet_learns_in_every_part_and_draws_any_size(context):
    torch.manual_seed(0)
    unet = UNet(UNetConfig(**TINY, blocks="modern"), 3, 3, context)
    cond = Cond() if context is None else Cond(context=torch.randn(2, 4, 6), context_mask=torch.ones(2, 4) > 0)
    for p in unet.parameters():  # so that zero-initialised layers pass something on
        torch.nn.init.normal_(p, std=0.1)
    unet(torch.randn(2, 3, 8, 6), torch.tensor([5.0, 900.0]), cond).square().sum().backward()
    assert not [name for name, p in unet.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert any(isinstance(m, ModernTransformer) for m in unet.modules())
    assert unet(torch.randn(2, 3, 5, 7), torch.tensor([1, 2]), cond).shape == (2, 3, 5, 7)


@pytest.mark.parametrize("blocks", ["classic", "modern"])
def test_recomputing_changes_no_gradient(blocks):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        unet = UNet(UNetConfig(**TINY, blocks=blocks, recompute=recompute), 3, 3, 6)
        torch.nn.init.normal_(unet.conv_out.weight)
        cond = Cond(context=torch.ones(2, 4, 6, requires_grad=True))
        unet(torch.ones(2, 3, 8, 8), torch.tensor([5.0, 900.0]), cond).square().sum().backward()
        gradients.append([p.grad for p in unet.parameters()] + [cond.context.grad])
    assert all(torch.allclose(a, b) for a, b in zip(*gradients))


def test_default_blocks_have_the_names_of_the_released_weights():
    names = {name for name, _ in UNet(UNetConfig(**TINY), 3, 3, 6).named_parameters()}
    assert not any("norm_q" in name for name in names) and any(name.endswith("ff.wide.weight") for name in names)


@pytest.mark.parametrize(
    ("change", "words"), [({"blocks": "new"}, "unet.blocks is 'new'"), ({"blocks": "modern", "num_heads": 16}, "by 4")]
)
def test_what_cannot_be_built_is_refused(change, words):
    with pytest.raises(UserError, match=words):
        UNet(UNetConfig(**(TINY | change)), 3, 3, 6)
