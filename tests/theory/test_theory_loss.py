"""The distribution of t and the weights of the loss, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from latentdiff import rng
from latentdiff.diffusion.loss import (
    TIMESTEP_SAMPLERS,
    LearnedWeighting,
    ObjectiveConfig,
    loss_weight,
    normal_quantile,
    per_sample_loss,
    timestep_uniforms,
)
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
T = torch.tensor([0, 1, 40, 300, 700.5, 999], dtype=torch.float64)
SNR = VP.log_snr(T).exp()


# ---- weights


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [
        ("eps", lambda snr, capped: capped / snr),
        ("x0", lambda snr, capped: capped),
        ("v", lambda snr, capped: capped / (snr + 1)),
    ],
)
def test_min_snr_weights_are_the_published_ones_for_each_prediction(prediction: str, expected) -> None:
    """Hang et al. 2023, eq. 8 and app.: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v."""
    weight = loss_weight(ObjectiveConfig(prediction=prediction, weighting="min_snr"), T, VP)
    assert torch.allclose(weight, expected(SNR, SNR.clamp(max=5)), rtol=1e-9)
    assert (SNR > 5).any() and (SNR < 5).any()


def test_p2_weights_are_the_published_ones() -> None:
    assert torch.allclose(loss_weight(ObjectiveConfig(weighting="p2"), T, VP), 1 / (1 + SNR), rtol=1e-9)


def test_flow_weights_an_error_of_x0_as_that_of_the_velocity() -> None:
    """(x_t - x0) / sigma is the velocity; below sigma 0.05 the weight is constant."""
    t = torch.arange(1000).double()
    sigma, above = FLOW.sigma(t), FLOW.sigma(t) >= 0.05
    weights = {k: loss_weight(ObjectiveConfig(prediction=k, weighting="flow"), t, FLOW) for k in ("x0", "flow")}
    assert torch.allclose(weights["x0"][above], sigma[above] ** -2, rtol=1e-9)
    assert torch.allclose(weights["flow"][above], torch.ones(1).double(), rtol=1e-9)
    assert (weights["x0"][~above] == 400).all() and 0 < (~above).sum() < 100


def test_the_weighted_loss_is_the_same_for_every_prediction() -> None:
    """The weighted loss of one error of x0, expressed as an error of each prediction, on both kinds of path."""
    for schedule, kinds in ((VP, ("eps", "x0", "v")), (FLOW, ("x0", "v", "flow"))):
        t, error = T.clamp(1, 990), 0.01
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        outputs = {"eps": -alpha / sigma, "x0": 1.0, "v": -(sigma + alpha**2 / sigma), "flow": -(1 + alpha / sigma)}
        losses = [
            loss_weight(ObjectiveConfig(k, weighting="min_snr"), t, schedule) * (outputs[k] * error) ** 2 for k in kinds
        ]
        assert all(torch.allclose(losses[0], loss, rtol=1e-9) for loss in losses)


def test_without_a_weighting_all_weights_are_1() -> None:
    assert torch.equal(loss_weight(ObjectiveConfig(), T, VP), torch.ones_like(T))


def test_losses_are_means_over_each_sample() -> None:
    error = torch.tensor([[3.0, -0.5], [0.0, 0.2]])
    for loss, expected in (("l2", [4.625, 0.02]), ("l1", [1.75, 0.1]), ("huber", [(2.5 + 0.125) / 2, 0.01])):
        assert per_sample_loss(ObjectiveConfig(loss=loss), error).tolist() == pytest.approx(expected)


# ---- timesteps


def test_the_normal_quantile_of_uniform_numbers_is_normal() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = normal_quantile(u)
    assert z.mean().abs() < 1e-9 and z.std().item() == pytest.approx(1, abs=1e-3)
    assert normal_quantile(torch.tensor([0.0], dtype=torch.float64)).isfinite().all()
    t = TIMESTEP_SAMPLERS["logit_normal"](ObjectiveConfig(logit_mean=0.7, logit_std=0.5), u, 1000) / 999
    assert torch.logit(t).mean().item() == pytest.approx(0.7, abs=1e-3)
    assert torch.logit(t).std().item() == pytest.approx(0.5, abs=1e-3)


def test_stratified_numbers_fall_one_into_each_interval_and_are_uniform_at_every_position() -> None:
    objective, size = ObjectiveConfig(stratified=True), 8
    steps = [timestep_uniforms(objective, 3, step, range(size), size) for step in range(2000)]
    assert all(sorted((u * size).long().tolist()) == list(range(size)) for u in steps)
    first = torch.stack(steps)[:, 0].sort().values
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert (first - uniform).abs().max() < 1.63 / math.sqrt(2000)  # Kolmogorov-Smirnov test at 1 %


def test_stratified_numbers_depend_on_the_position_and_not_on_the_micro_batch() -> None:
    objective = ObjectiveConfig(stratified=True)
    whole = timestep_uniforms(objective, 3, 5, range(8), 8)
    micro_batches = [timestep_uniforms(objective, 3, 5, range(i, i + 4), 8) for i in (0, 4)]
    assert torch.equal(whole, torch.cat(micro_batches))
    assert not torch.equal(whole, timestep_uniforms(objective, 3, 6, range(8), 8))


def test_stratified_numbers_estimate_a_mean_with_less_variance() -> None:
    means = [
        torch.stack([timestep_uniforms(objective, 0, s, range(16), 16).square().mean() for s in range(300)])
        for objective in (ObjectiveConfig(stratified=True), ObjectiveConfig())
    ]
    assert all(m.mean().item() == pytest.approx(1 / 3, abs=0.02) for m in means)
    assert means[0].std() < means[1].std() / 5


def test_unstratified_numbers_are_those_of_the_keys() -> None:
    u = timestep_uniforms(ObjectiveConfig(), 1, 2, range(4), 4)
    assert torch.equal(u, rng.uniform(rng.keys(1, 2, range(4), "t")))


# ---- learned weighting

OBJECTIVE = ObjectiveConfig(weighting="learned", timestep_sampling="logit_normal", logit_mean=-1.0)


def expected_loss(t: Tensor) -> Tensor:
    """A loss that grows fiftyfold with the noise."""
    return 0.02 * 50 ** (t / 999)


def t_quantiles(count: int) -> Tensor:
    return TIMESTEP_SAMPLERS["logit_normal"](OBJECTIVE, (torch.arange(count, dtype=torch.float64) + 0.5) / count, 1000)


def test_learned_weighting_learns_the_expected_loss_at_every_t() -> None:
    weighting, t = LearnedWeighting(OBJECTIVE, 1000), t_quantiles(512)
    optimizer = torch.optim.Adam(weighting.parameters(), lr=0.01)
    for step in range(600):
        noise = rng.uniform(rng.keys(0, step, range(512), "t")) * 2  # the mean of the factor is 1
        optimizer.zero_grad()
        weighting(expected_loss(t) * noise, t).mean().backward()
        optimizer.step()
    assert (weighting.u(t) - expected_loss(t).log()).abs().max() < 0.2
    assert weighting.weight(t).mean().item() == pytest.approx(1, abs=0.01)
    weighted = weighting.weight(t) * expected_loss(t)
    assert weighted.max() / weighted.min() < 1.5 and expected_loss(t).max() / expected_loss(t).min() > 10


def test_learned_weighting_changes_the_gradient_of_a_loss_and_not_its_value() -> None:
    weighting, t = LearnedWeighting(OBJECTIVE, 1000), t_quantiles(8)
    torch.nn.init.normal_(weighting.fourier_weights, generator=torch.Generator().manual_seed(0))
    losses = expected_loss(t).requires_grad_()
    weighted = weighting(losses, t)
    assert torch.equal(weighted, losses)
    (gradient,) = torch.autograd.grad(weighted.sum(), losses, retain_graph=True)
    assert torch.allclose(gradient, weighting.weight(t).double()) and gradient.std() > 0.1
    weighted.sum().backward()
    u = weighting.u(t).detach().requires_grad_()
    ((losses.detach() / u.exp() + u).sum()).backward()  # Karras et al. 2024, eq. 21
    (u_gradient,) = torch.autograd.grad(weighting.u(t), weighting.fourier_weights, u.grad.to(weighting.u(t).dtype))
    assert torch.allclose(weighting.fourier_weights.grad, weighting.U_LOSS_WEIGHT * u_gradient, rtol=1e-4)


def test_learned_weighting_starts_with_equal_weights_and_needs_no_device_sync() -> None:
    assert torch.equal(LearnedWeighting(OBJECTIVE, 1000).weight(t_quantiles(8)), torch.ones(8))
    weighting = LearnedWeighting(OBJECTIVE, 1000).to("meta")
    assert weighting(torch.rand(4, device="meta"), torch.rand(4, device="meta")).is_meta
