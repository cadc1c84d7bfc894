import pytest
import torch
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig, Reconstruction
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.autoencoder.discriminator import Discriminator, DiscriminatorConfig, generator_loss
from latentdiff.autoencoder.loss import LossConfig, adaptive_weight, backward, reconstruction_loss
from latentdiff.autoencoder.perceptual import MultiScaleConfig, build

CONFIG = LossConfig(l1=1.0, l2=0.5, perceptual=MultiScaleConfig(weight=0.7))
BOTTLENECKS = pytest.mark.parametrize(
    "bottleneck", [KLConfig(weight=0.01), VQConfig(codebook_size=16), IdentityConfig()]
)


class Stage:
    """A tiny stage one, in float64."""

    def __init__(self, bottleneck: KLConfig | VQConfig | IdentityConfig, config: LossConfig = CONFIG) -> None:
        torch.manual_seed(0)
        sizes = {"channels": 8, "channel_mult": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
        self.model = Autoencoder(AutoencoderConfig(**sizes, bottleneck=bottleneck)).double()
        self.discriminator = Discriminator(DiscriminatorConfig(channels=8, layers=2)).double()
        self.config, self.perceptual = config, build(config.perceptual)
        self.x = torch.rand(2, 3, 16, 16, dtype=torch.float64) * 2 - 1
        self.noise = torch.randn(2, 4, 8, 8, dtype=torch.float64)

    def losses(self, y: Tensor, reduction: str | None = None) -> tuple[Tensor, Tensor]:
        reduction = reduction or self.model.quantize.reduction
        terms = reconstruction_loss(self.config, self.x, y, self.perceptual, reduction)
        return terms["nll"], generator_loss(self.discriminator(y))

    def one_backward(
        self, disc_weight: float, with_g: bool = True, **options
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        output = self.model(self.x, self.noise)
        bottleneck = self.model.quantize.loss(output.bottleneck)
        y = output.y.detach().requires_grad_()
        nll, g = self.losses(y)
        self.model.zero_grad()
        g = g if with_g else None
        adaptive = backward(output, bottleneck, y, nll, g, disc_weight, self.model.last_layer, **options)
        return adaptive, gradients(self.model)

    def three_backwards(self, disc_weight: float) -> tuple[Tensor, dict[str, Tensor]]:
        """As in the original release: two gradients of the last layer, then backward of the whole sum."""
        output, last = self.model(self.x, self.noise), self.model.last_layer.weight
        nll, g = self.losses(output.y)
        norms = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (nll, g)]
        adaptive = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        self.model.zero_grad()
        (nll + self.model.quantize.loss(output.bottleneck) + disc_weight * adaptive * g).backward()
        return adaptive, gradients(self.model)


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {k: p.grad.clone() for k, p in model.named_parameters()}


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest relative difference; gradients that are zero up to rounding are compared with the largest one."""
    sizes = {k: v.abs().max() for k, v in a.items()}
    floor = 1e-3 * max(sizes.values())
    return max(((a[k] - b[k]).abs().max() / torch.maximum(sizes[k], floor)).item() for k in a)


@BOTTLENECKS
def test_one_backward_gives_the_gradients_of_three(bottleneck):
    stage = Stage(bottleneck)
    (expected_weight, expected), (adaptive, actual) = stage.three_backwards(0.5), stage.one_backward(0.5)
    assert abs(expected_weight - adaptive) < 1e-12 * expected_weight
    assert largest_difference(expected, actual) < 1e-12
    assert largest_difference(expected, stage.one_backward(0.51)[1]) > 1e-4


def test_without_a_discriminator_there_is_no_adaptive_weight_and_no_adversarial_gradient():
    stage = Stage(KLConfig())
    adaptive, actual = stage.one_backward(0.5, with_g=False)
    assert adaptive is None
    assert largest_difference(stage.three_backwards(0.0)[1], actual) < 1e-12


@pytest.mark.parametrize("scale", [0.25, torch.tensor(1024.0)])
def test_a_scaled_loss_scales_the_gradients_and_leaves_the_adaptive_weight(scale):
    stage = Stage(KLConfig(weight=0.01))
    (adaptive, unscaled), (scaled_adaptive, scaled) = stage.one_backward(0.5), stage.one_backward(0.5, grad_scale=scale)
    assert adaptive.item() == pytest.approx(scaled_adaptive.item(), rel=1e-10)
    assert largest_difference({k: v * float(scale) for k, v in unscaled.items()}, scaled) < 1e-10


def test_a_call_inside_autocast_does_not_lower_the_precision_of_the_backward_pass():
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(48, 48), torch.randn(4, 48)
    grads = []
    for inside in (False, True):
        output = Reconstruction(layer(x).view(4, 3, 4, 4), x, {})  # in float32 both times
        y = output.y.detach().requires_grad_()
        nll = y.square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            backward(output, torch.zeros(()), y, nll, None, 0.0, None)
        grads.append(layer.weight.grad.clone())
        layer.zero_grad()
    assert torch.equal(*grads)


def test_ranks_agree_on_the_adaptive_weight_of_their_mean_gradients():
    torch.manual_seed(0)
    last = torch.nn.Conv2d(4, 3, 3, padding=1)
    a, b, h = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8) / 100, torch.randn(2, 4, 8, 8)
    expected = adaptive_weight(a / 2, b / 2, h, last)  # the mean over a batch of both ranks' items
    ranks = [tuple(t[rank : rank + 1] for t in (a, b, h)) for rank in (0, 1)]
    reduced = []
    local = [adaptive_weight(*inputs, last, lambda t: reduced.append(t) or t) for inputs in ranks]
    mean = torch.stack(reduced).mean(0)
    for inputs, weight in zip(ranks, local):
        torch.testing.assert_close(adaptive_weight(*inputs, last, lambda t: mean), expected)
        assert abs(weight - expected) > 1e-3 * expected


def test_the_adaptive_weight_is_bounded_and_in_full_precision():
    last, h = torch.nn.Conv2d(4, 3, 3, padding=1), torch.ones(1, 4, 8, 8, dtype=torch.bfloat16)
    a, zeros = torch.full((1, 3, 8, 8), 100.0), torch.zeros(1, 3, 8, 8)
    assert adaptive_weight(a, zeros, h, last).item() == 1e4 and adaptive_weight(zeros, zeros, h, last).item() == 0
    assert adaptive_weight(a, a, h, last).dtype == torch.float32


TERMS = {  # a term alone -> a layer that must get a gradient
    "l1": (LossConfig(l1=1.0, perceptual=None), IdentityConfig(), "decoder.conv_out"),
    "l2": (LossConfig(l1=0.0, l2=1.0, perceptual=None), IdentityConfig(), "decoder.conv_out"),
    "perceptual": (LossConfig(l1=0.0, perceptual=MultiScaleConfig()), IdentityConfig(), "decoder.conv_out"),
    "kl": (LossConfig(l1=0.0, perceptual=None), KLConfig(), "quant_conv"),
    "codebook": (LossConfig(l1=0.0, perceptual=None), VQConfig(codebook_size=16), "quantize.embedding"),
    "commitment": (LossConfig(l1=0.0, perceptual=None), VQConfig(codebook_size=16), "quant_conv"),
}


@pytest.mark.parametrize("term", TERMS)
def test_every_term_alone_has_a_gradient(term):
    config, bottleneck, name = TERMS[term]
    _, grads = Stage(bottleneck, config).one_backward(0.0, with_g=False)
    assert grads[f"{name}.weight"].abs().max() > 1e-9


def test_the_adversarial_term_has_gradients_for_the_autoencoder_and_none_for_the_discriminator():
    stage = Stage(KLConfig())
    stage.one_backward(0.5)
    assert all(p.grad is None for p in stage.discriminator.parameters())
    assert largest_difference(stage.one_backward(0.0)[1], stage.one_backward(0.5)[1]) > 1e-2


def test_a_sum_is_the_mean_times_the_values_of_an_image_so_the_kl_weight_is_that_of_the_paper():
    stage = Stage(KLConfig())
    y = torch.zeros_like(stage.x)
    mean, sum_ = stage.losses(y, "mean")[0], stage.losses(y, "sum")[0]
    assert (sum_ / mean).item() == pytest.approx(3 * 16 * 16)
    assert [Stage(b).model.quantize.reduction for b in (KLConfig(), VQConfig(codebook_size=4), IdentityConfig())] == [
        "sum",
        "mean",
        "mean",
    ]


def test_reconstruction_terms_have_their_closed_forms():
    x, y = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), -0.5)
    terms = reconstruction_loss(LossConfig(l1=2.0, l2=4.0, perceptual=None), x, y, None, "mean")
    assert {k: v.item() for k, v in terms.items()} == {"l1": 0.5, "l2": 0.25, "nll": 2.0}


@pytest.mark.parametrize("dtype, expected", [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_becomes_float32_and_float64_stays(dtype, expected):
    x, y = torch.rand(1, 3, 8, 8).to(dtype), torch.rand(1, 3, 8, 8).to(dtype)
    terms = reconstruction_loss(CONFIG, x, y, build(CONFIG.perceptual), "sum")
    assert {value.dtype for value in terms.values()} == {expected}
