import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from latentdiff.autoencoder.bottleneck import (
    Codebook,
    Gaussian,
    KLConfig,
    VQConfig,
    code_counts,
    codebook_usage,
    kl,
    latent_stats,
    moment_sums,
    reset_dead_codes,
    sample,
)


def codebook(n: int = 6, channels: int = 2, **changes) -> Codebook:
    torch.manual_seed(0)
    book = Codebook(VQConfig(codebook_size=n, **changes), channels)
    nn.init.normal_(book.embedding.weight)
    return book.double()


def latent(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- KL


def test_the_kl_is_the_closed_form_summed_over_each_item():
    mean, logvar = latent(3, 2, 4, 4), latent(3, 2, 4, 4).flip(0)
    expected = kl_divergence(Normal(mean, torch.exp(logvar / 2)), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(kl(mean, logvar), expected)


def test_the_kl_is_the_mean_log_ratio_of_posterior_samples():
    mean, logvar = torch.full((1, 1), 0.7), torch.full((1, 1), -1.2)
    noise = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    z = sample(mean, logvar, noise)
    log_ratio = Normal(mean, torch.exp(logvar / 2)).log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = log_ratio.std() / len(z) ** 0.5
    assert (log_ratio.mean() - kl(mean, logvar)).abs() < 4 * error


def test_the_kl_weight_counts_a_sum_over_the_latent():
    gaussian = Gaussian(KLConfig(weight=1e-6), 4)
    moments = torch.cat([torch.full((2, 4, 8, 8), 2.0), torch.zeros(2, 4, 8, 8)], dim=1)  # N(2, 1): KL 2 per value
    _, terms = gaussian(*gaussian.split(moments), None)
    assert terms["kl"].tolist() == [2.0 * 4 * 8 * 8] * 2
    assert gaussian.loss(terms).item() == pytest.approx(1e-6 * 512)


def test_the_log_variance_is_clamped():
    _, logvar = Gaussian(KLConfig(), 1).split(torch.tensor([[[[0.0]], [[99.0]]], [[[0.0]], [[-99.0]]]]))
    assert logvar.flatten().tolist() == [20.0, -30.0]


# ---- statistics of latents


def test_the_variance_is_that_of_posterior_samples():
    mean, logvar = 2 * latent(64, 3, 8, 8) + 0.5, latent(64, 3, 8, 8).flip(0) - 1
    z = sample(mean, logvar, torch.randn(mean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
    sums = moment_sums(mean[:40], logvar[:40]) + moment_sums(mean[40:], logvar[40:])
    means, variances = latent_stats(sums)
    torch.testing.assert_close(means, mean.mean((0, 2, 3)))
    torch.testing.assert_close(variances, z.var((0, 2, 3)), rtol=0.05, atol=0)
    torch.testing.assert_close(latent_stats(moment_sums(z.float(), None))[1], z.var((0, 2, 3), correction=0))


# ---- VQ


def test_codes_are_the_nearest_by_brute_force():
    book, z = codebook(), latent(2, 2, 3, 5)
    distances = (z[:, None] - book.embedding.weight.detach()[None, :, :, None, None]).square().sum(2)
    assert torch.equal(book.code_indices(z), distances.argmin(1))


def test_autocast_does_not_touch_the_distances():
    book = Codebook(VQConfig(codebook_size=512), 4)
    z = torch.randn(1, 4, 16, 16) / 512
    expected = book.code_indices(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(book.code_indices(z), expected)
        products = (z.movedim(1, -1).flatten(0, 2) @ book.embedding.weight.T).float()
    in_bf16 = (book.embedding.weight.square().sum(1) - 2 * products).argmin(1).view(expected.shape)
    assert not torch.equal(in_bf16, expected)


@pytest.mark.parametrize("legacy, on_codes, on_encoder", [(True, 0.25, 1.0), (False, 1.0, 0.25)])
def test_beta_weights_the_codebook_term_if_legacy_and_the_commitment_if_not(legacy, on_codes, on_encoder):
    book = codebook(n=2, channels=1, beta=0.25, legacy=legacy, weight=2.0)
    book.embedding.weight.data = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    z = torch.tensor([0.1, 0.8, 1.2, 1.5], dtype=torch.float64).view(1, 1, 2, 2).requires_grad_()
    _, terms = book(z, None, None)
    loss = book.loss(terms)
    loss.backward()
    # squares 0.01, 0.04, 0.04, 0.25: mean 0.085 in either term
    assert loss.item() == pytest.approx(2 * (1 + 0.25) * 0.085)
    # d/de of a mean of four squares is the sum of 2(e - z)/4 over the code's own positions, and d/dz is 2(z - e)/4
    expected = [2 * on_codes * -0.05, 2 * on_codes * (0.1 - 0.1 - 0.25)]
    assert book.embedding.weight.grad.flatten().tolist() == pytest.approx(expected)
    assert z.grad.flatten().tolist() == pytest.approx([2 * on_encoder * d / 2 for d in (0.1, -0.2, 0.2, 0.5)])


def test_the_quantized_latent_has_the_gradient_of_the_identity_and_no_noise():
    book, z, g = codebook(), latent(1, 2, 3, 3).requires_grad_(), latent(1, 2, 3, 3).exp()
    for q in (book(z, None, None)[0], book(z, None, torch.ones(1))[0], book.eval().nearest_codes(z)):
        torch.testing.assert_close(q, book.look_up(book.code_indices(z)))
        assert torch.equal(torch.autograd.grad(q, z, g)[0], g)


def test_a_new_codebook_lies_within_one_over_its_size():
    weight = Codebook(VQConfig(codebook_size=50), 8).embedding.weight
    assert weight.abs().max() <= 1 / 50 and weight.abs().max() > 0.9 / 50


# ---- codebook usage


def test_codes_are_counted():
    codes = torch.tensor([[[0, 3], [3, 3]]])
    assert code_counts(codes, 5).tolist() == [1, 0, 0, 3, 0]


@pytest.mark.parametrize("counts, fraction, perplexity", [([5, 5, 5, 5], 1.0, 4.0), ([9, 0, 0, 0], 0.25, 1.0)])
def test_perplexity_is_the_number_of_codes_used_evenly(counts, fraction, perplexity):
    values = codebook_usage(torch.tensor(counts))
    assert [v.item() for v in values] == pytest.approx([fraction, perplexity])


def run_resets(seed: int, steps: int, after: int = 2) -> tuple[Codebook, torch.Tensor, list[list[bool]]]:
    """The codebook, the idle steps and the codes reset in each of `steps` steps, in which codes 1 and 4 are unused."""
    book, idle = codebook(reset_after=after), torch.zeros(6, dtype=torch.int64)
    counts, latents = torch.tensor([1, 0, 2, 3, 0, 1]), latent(2, 2, 4, 4)
    return book, idle, [reset_dead_codes(book, idle, counts, latents, seed, step).tolist() for step in range(steps)]


def test_codes_that_stay_dead_become_encoder_outputs_and_the_others_stay():
    before = codebook().embedding.weight.detach().clone()
    book, idle, resets = run_resets(seed=0, steps=2)
    assert resets == [[False] * 6, [False, True, False, False, True, False]]
    after, pool = book.embedding.weight.detach(), latent(2, 2, 4, 4).movedim(1, -1).flatten(0, 2)
    assert torch.equal(after[[0, 2, 3, 5]], before[[0, 2, 3, 5]])
    assert all((pool == code).all(1).any() for code in after[[1, 4]])
    assert idle.tolist() == [0] * 6  # a new code has the full number of steps again


def test_the_new_codes_depend_on_seed_and_step_alone():
    weights = [run_resets(seed, steps=2)[0].embedding.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_codes_are_never_replaced_where_that_is_off():
    book, idle, resets = run_resets(seed=0, steps=5, after=0)
    assert not any(map(any, resets)) and torch.equal(book.embedding.weight, codebook().embedding.weight)
    assert idle.tolist() == [0, 5, 0, 0, 5, 0]
