"""Initialization of attention."""

import pytest
import torch

from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.diffusion.unet import UNetConfig, attention_block
from latentdiff.layers import Attention


def logits(attention: Attention, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    q, k = (x.unflatten(-1, (attention.heads, -1)) for x in (attention.q(tokens), attention.k(context)))
    return torch.einsum("bnhd,blhd->bhnl", q, k) / q.shape[-1] ** 0.5


@pytest.mark.parametrize(("gain", "std"), [(None, 1 / 3), (1.0, 1.0), (1.4, 1.96)])
def test_logits_of_normalized_tokens_start_with_a_standard_deviation_of_gain_squared(gain, std):
    torch.manual_seed(0)
    attention = Attention(128, 4, 32, 96, gain)
    actual = logits(attention, torch.randn(8, 40, 128), torch.randn(8, 40, 96)).std().item()
    assert actual == pytest.approx(std, rel=0.1)


def test_text_and_cross_attention_start_sharper_than_pytorch_default():
    torch.manual_seed(0)
    config = TextConfig(dim=128, depth=1, heads=4, head_dim=32, max_length=8, vocab_size=9)
    text = TextCondition(config, 0, torch.zeros(8, dtype=torch.long)).blocks[0].attention
    cross = attention_block(UNetConfig(channels=128, norm_groups=8), 128, 96).blocks[0].attn2
    assert text.q.weight.std().item() == pytest.approx(1.4 * 128**-0.5, rel=0.05)
    assert cross.k.weight.std().item() == pytest.approx(96**-0.5, rel=0.05)
