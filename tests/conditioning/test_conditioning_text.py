"""The text encoder: padding, dropped captions, gradients, size."""

import pytest
import torch
from torch import Tensor

from latentdiff.conditioning.text import TextCondition, TextConfig

PAD = 0
EMPTY = torch.tensor([1, 2, PAD, PAD, PAD, PAD])  # start, end
CAPTIONS = torch.tensor([[1, 7, 8, 9, 2, PAD], [1, 5, 2, PAD, PAD, PAD]])
KEEP, DROP = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)


def encoder(**changes) -> TextCondition:
    torch.manual_seed(0)
    config = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 4, "max_length": 6, "vocab_size": 10} | changes
    return TextCondition(TextConfig(**config), PAD, EMPTY)


def attended(module: TextCondition, tokens: Tensor, drop: Tensor = KEEP) -> list[Tensor]:
    """The context where it may be attended to, per caption."""
    cond = module({"tokens": tokens}, drop)
    return [context[mask] for context, mask in zip(cond.context, cond.context_mask)]


def test_the_length_of_the_padding_does_not_matter() -> None:
    module = encoder()
    for a, b in zip(attended(module, CAPTIONS), attended(module, CAPTIONS[:, :5])):
        assert torch.allclose(a, b, atol=1e-6)
    unmasked = encoder(mask_padding=False)
    assert unmasked({"tokens": CAPTIONS}, KEEP).context_mask is None
    long, short = (unmasked({"tokens": tokens}, KEEP).context[0, :5] for tokens in (CAPTIONS, CAPTIONS[:, :5]))
    assert not torch.allclose(long, short, atol=1e-3)


def test_a_dropped_caption_is_the_empty_one_and_changes_no_other() -> None:
    module = encoder()
    empty = attended(module, EMPTY.expand(2, -1))
    kept, dropped = attended(module, CAPTIONS), attended(module, CAPTIONS, torch.tensor([False, True]))
    assert torch.allclose(dropped[1], empty[1], atol=1e-6) and torch.allclose(dropped[0], kept[0], atol=1e-6)
    assert torch.allclose(attended(module, CAPTIONS[:, :3], DROP)[0], empty[0], atol=1e-6)


def test_a_caption_of_padding_alone_gives_finite_values() -> None:
    cond = encoder()({"tokens": torch.full((2, 6), PAD)}, KEEP)
    assert cond.context.isfinite().all() and cond.context_mask.any(dim=1).all()


def test_the_order_of_words_matters() -> None:
    module = encoder()
    swapped = CAPTIONS[:, [0, 2, 1, 3, 4, 5]]
    assert not torch.allclose(attended(module, CAPTIONS)[0][4], attended(module, swapped)[0][4], atol=1e-3)


def test_every_parameter_gets_a_gradient() -> None:
    module = encoder()
    torch.cat(attended(module, CAPTIONS)).pow(3).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in module.parameters())


def test_float64_stays_float64_and_the_empty_caption_is_saved() -> None:
    module = encoder()
    assert torch.equal(module.state_dict()["empty"], EMPTY)
    assert module.double()({"tokens": CAPTIONS}, KEEP).context.dtype == torch.float64


@pytest.mark.parametrize(
    ("config", "published", "to_logits"),  # paper.md; the published counts include an unused output layer
    [(TextConfig(), 581_994_042, 39_098_682), (TextConfig(dim=640), 186_154_682, 640 * 30522 + 30522)],
)
def test_the_encoder_has_its_published_size(config: TextConfig, published: int, to_logits: int) -> None:
    with torch.device("meta"):
        module = TextCondition(config, PAD, torch.zeros(77, dtype=torch.int64))
    assert sum(parameter.numel() for parameter in module.parameters()) == published - to_logits
