"""How t is drawn and what an error weighs, against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.diffusion.loss import (
    TIMESTEP_SAMPLERS,
    ObjectiveConfig,
    LearnedWeighting,
    timestep_uniforms,
    per_sample_loss,
    normal_quantile,
    loss_weight,
)
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig

VP, FLOW = Schedule(ScheduleConfig()), Schedule(ScheduleConfig(kind="flow"))
T = torch.tensor([0, 1, 40, 300, 700.5, 999], dtype=torch.float64)
SNR = VP.log_snr(T).exp()


# ---- what an error weighs


@pytest.mark.parametrize(
    ("prediction", "want"),
    [
        ("eps", lambda snr, capped: capped / snr),
        ("x0", lambda snr, capped: capped),
        ("v", lambda snr, capped: capped / (snr + 1)),
    ],
)
def test_min_snr_weighs_each_prediction_as_published(prediction: str, want) -> None:
    """Hang et al. 2023, eq. 8 and app.: min(SNR, 5) / SNR for eps, min(SNR, 5) / (SNR + 1) for v."""
    got = loss_weight(ObjectiveConfig(prediction=prediction, weighting="min_snr"), T, VP)
    assert torch.allclose(got, want(SNR, SNR.clamp(max=5)), rtol=1e-9)
    assert (SNR > 5).any() and (SNR < 5).any()


def test_p2_weighs_the_noise_as_published() -> None:
    assert torch.allclose(loss_weight(ObjectiveConfig(weighting="p2"), T, VP), 1 / (1 + SNR), rtol=1e-9)


def test_flow_weighs_an_error_of_x0_as_the_velocity_that_it_makes() -> None:
    """(x_t - x0) / sigma is the velocity; below sigma 0.05 an error weighs no more."""
    t = torch.arange(1000).double()
    sigma, kept = FLOW.sigma(t), FLOW.sigma(t) >= 0.05
    found = {k: loss_weight(ObjectiveConfig(prediction=k, weighting="flow"), t, FLOW) for k in ("x0", "flow")}
    assert torch.allclose(found["x0"][kept], sigma[kept] ** -2, rtol=1e-9)
    assert torch.allclose(found["flow"][kept], torch.ones(1).double(), rtol=1e-9)
    assert (found["x0"][~kept] == 400).all() and 0 < (~kept).sum() < 100


def test_a_weight_of_x0_is_the_same_loss_for_every_prediction() -> None:
    """On either path: the error of x0 that each prediction's error is, weighted, is one and the same."""
    for schedule, kinds in ((VP, ("eps", "x0", "v")), (FLOW, ("x0", "v", "flow"))):
        t, error = T.clamp(1, 990), 0.01
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        outputs = {"eps": -alpha / sigma, "x0": 1.0, "v": -(sigma + alpha**2 / sigma), "flow": -(1 + alpha / sigma)}
        losses = [
            loss_weight(ObjectiveConfig(k, weighting="min_snr"), t, schedule) * (outputs[k] * error) ** 2 for k in kinds
        ]
        assert all(torch.allclose(losses[0], loss, rtol=1e-9) for loss in losses)


def test_without_a_weighting_all_weigh_the_same() -> None:
    assert torch.equal(loss_weight(ObjectiveConfig(), T, VP), torch.ones_like(T))


def test_distances_are_means_over_each_sample() -> None:
    error = torch.tensor([[3.0, -0.5], [0.0, 0.2]])
    for loss, want in (("l2", [4.625, 0.02]), ("l1", [1.75, 0.1]), ("huber", [(2.5 + 0.125) / 2, 0.01])):
        assert per_sample_loss(ObjectiveConfig(loss=loss), error).tolist() == pytest.approx(want)


# ---- how t is drawn


def test_normal_numbers_come_from_uniform_ones() -> None:
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    z = normal_quantile(u)
    assert z.mean().abs() < 1e-9 and z.std().item() == pytest.approx(1, abs=1e-3)
    assert normal_quantile(torch.tensor([0.0], dtype=torch.float64)).isfinite().all()
    draw = TIMESTEP_SAMPLERS["logit_normal"](ObjectiveConfig(logit_mean=0.7, logit_std=0.5), u, 1000) / 999
    assert torch.logit(draw).mean().item() == pytest.approx(0.7, abs=1e-3)
    assert torch.logit(draw).std().item() == pytest.approx(0.5, abs=1e-3)


def test_stratified_numbers_fall_one_into_each_share_of_the_batch_and_are_uniform_at_every_place() -> None:
    aim, size = ObjectiveConfig(stratified=True), 8
    steps = [timestep_uniforms(aim, 3, step, range(size), size) for step in range(2000)]
    assert all(sorted((u * size).long().tolist()) == list(range(size)) for u in steps)
    first = torch.stack(steps)[:, 0].sort().values
    uniform = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert (first - uniform).abs().max() < 1.63 / math.sqrt(2000)  # Kolmogorov and Smirnov, 1 %


def test_stratified_numbers_depend_on_the_place_and_not_on_the_piece() -> None:
    aim = ObjectiveConfig(stratified=True)
    whole = timestep_uniforms(aim, 3, 5, range(8), 8)
    pieces = [timestep_uniforms(aim, 3, 5, range(i, i + 4), 8) for i in (0, 4)]
    assert torch.equal(whole, torch.cat(pieces))
    assert not torch.equal(whole, timestep_uniforms(aim, 3, 6, range(8), 8))


def test_stratified_numbers_estimate_a_mean_with_less_variance() -> None:
    means = [
        torch.stack([timestep_uniforms(aim, 0, s, range(16), 16).square().mean() for s in range(300)])
        for aim in (ObjectiveConfig(stratified=True), ObjectiveConfig())
    ]
    assert all(m.mean().item() == pytest.approx(1 / 3, abs=0.02) for m in means)
    assert means[0].std() < means[1].std() / 5


def test_plain_numbers_are_those_of_the_keys() -> None:
    assert torch.equal(timestep_uniforms(ObjectiveConfig(), 1, 2, range(4), 4), rng.uniform(rng.keys(1, 2, range(4), "t")))


# ---- uncertainty

AIM = ObjectiveConfig(weighting="learned", timestep_sampling="logit_normal", logit_mean=-1.0)


def left(t: Tensor) -> Tensor:
    """A loss that grows fiftyfold with the noise."""
    return 0.02 * 50 ** (t / 999)


def drawn(count: int) -> Tensor:
    return TIMESTEP_SAMPLERS["logit_normal"](AIM, (torch.arange(count, dtype=torch.float64) + 0.5) / count, 1000)


def test_uncertainty_learns_what_is_left_of_the_loss_at_every_t() -> None:
    made, t = LearnedWeighting(AIM, 1000), drawn(512)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    for step in range(600):
        noise = rng.uniform(rng.keys(0, step, range(512), "t")) * 2  # losses of mean left(t)
        optimizer.zero_grad()
        made(left(t) * noise, t).mean().backward()
        optimizer.step()
    assert (made.u(t) - left(t).log()).abs().max() < 0.2
    assert made.weight(t).mean().item() == pytest.approx(1, abs=0.01)
    taught = made.weight(t) * left(t)
    assert taught.max() / taught.min() < 1.5 and left(t).max() / left(t).min() > 10


def test_uncertainty_changes_what_a_loss_teaches_and_not_what_it_is() -> None:
    made, t = LearnedWeighting(AIM, 1000), drawn(8)
    torch.nn.init.normal_(made.waves, generator=torch.Generator().manual_seed(0))
    losses = left(t).requires_grad_()
    found = made(losses, t)
    assert torch.equal(found, losses)
    (gradient,) = torch.autograd.grad(found.sum(), losses, retain_graph=True)
    assert torch.allclose(gradient, made.weight(t).double()) and gradient.std() > 0.1
    found.sum().backward()
    u = made.u(t).detach().requires_grad_()
    ((losses.detach() / u.exp() + u).sum()).backward()  # Karras et al. 2024, eq. 21
    (want,) = torch.autograd.grad(made.u(t), made.waves, u.grad.to(made.u(t).dtype))
    assert torch.allclose(made.waves.grad, made.SHARE * want, rtol=1e-4)


def test_uncertainty_begins_with_even_weights_and_reads_nothing_back_from_the_device() -> None:
    assert torch.equal(LearnedWeighting(AIM, 1000).weight(drawn(8)), torch.ones(8))
    made = LearnedWeighting(AIM, 1000).to("meta")
    assert made(torch.rand(4, device="meta"), torch.rand(4, device="meta")).is_meta
