"""LatentDiffusion: the loss of each sample, timesteps and drops."""

import pytest
import torch

from latentdiff import rng
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.model import LatentDiffusion

TINY = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, norm_groups=4)
KINDS = {"eps": "scaled_linear", "x0": "scaled_linear", "v": "scaled_linear", "flow": "flow"}
SHAPE = (2, 4, 4)


def model(prediction="eps", dropout=0.1, **objective):
    """Latents [2, 4, 4], a label of five classes."""
    torch.manual_seed(0)
    conditioner = Conditioner([LabelCondition(LabelConfig(classes=5, dim=8, dropout=dropout))])
    kind = KINDS[prediction]
    schedule = Schedule(ScheduleConfig(kind=kind) if kind == "flow" else ScheduleConfig())
    network = LatentDiffusion(
        conditioner, UNet(TINY, 2, 2, 8), schedule, ObjectiveConfig(prediction=prediction, **objective)
    )
    for p in network.parameters():  # zero-initialised layers would hide everything behind them
        torch.nn.init.normal_(p, std=0.1)
    return network.eval()


def batch(n):
    keys = torch.arange(n)
    return {"z": rng.normal(keys, SHAPE), "fields": {"label": keys % 5}, "t": rng.uniform(keys).mul(999).floor(),
            "eps": rng.normal(keys + 99, SHAPE), "drops": [torch.zeros(n, dtype=torch.bool)]}  # fmt: skip


def loss(network, b):
    return network(b["z"], b["fields"], b["t"], b["eps"], b["drops"])


# ---- loss


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_the_loss_is_the_error_of_the_prediction(prediction, kind):
    network, b = model(prediction, loss=kind), batch(3)
    alpha, sigma = (f(b["t"]).float().view(-1, 1, 1, 1) for f in (network.schedule.alpha, network.schedule.sigma))
    z_t = alpha * b["z"] + sigma * b["eps"]
    output = network.unet(z_t, b["t"], network.conditioner(b["fields"], b["drops"]))
    target = {"eps": b["eps"], "x0": b["z"], "v": alpha * b["eps"] - sigma * b["z"], "flow": b["eps"] - b["z"]}
    error = output - target[prediction]
    expected = (error**2 if kind == "l2" else error.abs()).mean((1, 2, 3))
    assert loss(network, b).shape == (3,) and torch.allclose(loss(network, b), expected, atol=1e-5)


def test_the_loss_of_a_sample_depends_on_it_alone():
    network, b = model(), batch(4)
    tail = {name: x[2:] for name, x in b.items() if isinstance(x, torch.Tensor)}
    alone = loss(network, b | tail | {"fields": {"label": b["fields"]["label"][2:]}, "drops": [b["drops"][0][2:]]})
    assert torch.allclose(loss(network, b)[2:], alone, atol=1e-5)


def test_a_hidden_condition_changes_the_loss_of_its_sample_only():
    network, b = model(), batch(4)
    hidden = loss(network, b | {"drops": [torch.tensor([False, True, False, False])]})
    assert (hidden != loss(network, b)).tolist() == [False, True, False, False]


def test_with_learned_weighting_the_loss_is_unchanged_and_its_optimum_is_u_equal_to_log_of_the_loss(monkeypatch):
    plain, b = model(), batch(4)
    weighted = model(weighting="learned")
    weighted.load_state_dict(plain.state_dict(), strict=False)
    u = loss(plain, b).detach().log().requires_grad_()
    monkeypatch.setattr(weighted.learned_weighting, "u", lambda t: u if len(t) == 4 else torch.zeros(len(t)))
    losses = loss(weighted, b)
    assert torch.allclose(losses, loss(plain, b))
    (gradient,) = torch.autograd.grad(losses.sum(), u)
    assert gradient.abs().max() < 1e-6


def test_timesteps_are_sampled_over_the_whole_schedule():
    u = rng.uniform(torch.arange(4000))
    t = model().sample_timesteps(u)
    assert t.shape == (4000,) and torch.equal(t, t.floor()) and t.min() == 0 and 990 < t.max() <= 999
    assert t.mean().item() == pytest.approx(499.5, abs=20)
    middle = model("flow", timestep_sampling="logit_normal").sample_timesteps(u)
    assert middle.min() >= 0 and middle.max() <= 999
    assert ((middle > 250) & (middle < 750)).double().mean() > 0.65  # 0.73: denser in the middle


def test_drops_follow_each_parts_dropout():
    (drop,) = model(dropout=0.3).conditioner.sample_drops(torch.arange(4000))
    assert drop.dtype == torch.bool and drop.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not model(dropout=0.0).conditioner.sample_drops(torch.arange(100))[0].any()


def test_unknown_objectives_are_refused():
    for change in ({"loss": "l3"}, {"timestep_sampling": "late"}):
        with pytest.raises(UserError, match="objective"):
            ObjectiveConfig(**change)
    with pytest.raises(UserError, match="eps, x0, v, flow"):
        LatentDiffusion(Conditioner([]), None, Schedule(ScheduleConfig()), ObjectiveConfig(prediction="wild"))
