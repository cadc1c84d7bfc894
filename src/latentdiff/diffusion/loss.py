"""What training minimises: the prediction, the distance, how t is drawn, and how much an error at each t weighs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.diffusion.parameterization import TARGET_COEFFS
from latentdiff.diffusion.schedule import Schedule
from latentdiff.layers import timestep_embedding


@dataclass(frozen=True)
class ObjectiveConfig:
    prediction: str = "eps"  # what the U-Net predicts: eps, x0, v, or flow (with schedule.kind=flow)
    loss: str = "l2"  # l2, l1 or huber
    timestep_sampling: str = (
        "uniform"  # how t is drawn: uniform, logit_normal (the middle more often) or importance (by loss)
    )
    logit_mean: float = 0.0  # of logit_normal; above 0: more noise
    logit_std: float = 1.0  # of logit_normal; above 1: more of both ends
    stratified: bool = False  # the t of a batch are spread evenly: one in each of batch_size equal shares
    weighting: str = "none"  # of an error at t: none, min_snr, p2, flow (as of the velocity) or uncertainty (learned)
    min_snr_gamma: float = 5.0  # of min_snr: the signal-to-noise ratio above which an error weighs no more
    elbo_weight: float = 0.0  # weight of the variational bound, added to the loss (the original's original_elbo_weight)

    def __post_init__(self) -> None:
        for name, known in (("loss", DISTANCES), ("timestep_sampling", DRAWS), ("weighting", WEIGHTS)):
            if getattr(self, name) not in known:
                raise UserError(f"objective.{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        if self.elbo_weight and self.weighting == "uncertainty":
            raise UserError(
                f"objective.elbo_weight is {self.elbo_weight:g}; weighting=uncertainty learns a weight of t away: it must be 0"
            )
        for name in ("min_snr_gamma", "logit_std"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be above 0")


DISTANCES = {
    "l2": lambda error: error.square(),
    "l1": lambda error: error.abs(),
    "huber": lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none"),
}
DRAWS = {  # u uniform in [0, 1) -> t in 0..T-1: quantile functions
    "uniform": lambda o, u, T: (u * T).floor(),
    "logit_normal": lambda o, u, T: torch.sigmoid(o.logit_mean + o.logit_std * normal_quantile(u)) * (T - 1),
}
WEIGHTS = {  # of a squared error of x0, by the signal-to-noise ratio; that of another prediction's follows
    "none": None,
    "min_snr": lambda o, snr: snr.clamp(max=o.min_snr_gamma),  # Hang et al. 2023, eq. 6
    "p2": lambda o, snr: snr / (1 + snr),  # Choi et al. 2022, eq. 8, with k and gamma 1
    "flow": lambda o, snr: (
        (1 + snr.sqrt()).square().clamp(max=400)
    ),  # 1 / sigma²; Li & He 2025, whose sigma ends at 0.05
    "uncertainty": None,  # learned, by Uncertainty
}


def distance(objective: ObjectiveConfig, error: Tensor) -> Tensor:
    """[B, ...] -> [B], a mean over each sample."""
    return DISTANCES[objective.loss](error).flatten(1).mean(1)


def weight(objective: ObjectiveConfig, t: Tensor, schedule: Schedule) -> Tensor:
    """What an error of the prediction at t [B] weighs, but for what is learned (Uncertainty): float64 [B]."""
    t, weighted = t.to(torch.float64), WEIGHTS[objective.weighting]
    total = torch.ones_like(t)
    if weighted is not None:
        total = weighted(objective, schedule.log_snr(t).exp()) * _x0_per_output(objective, t, schedule)
    if objective.elbo_weight:  # the step's share of the bound (Kingma et al. 2021, eq. 14); t = 0 weighs as t = 1
        t = t.clamp(min=1)
        share = (schedule.log_snr(t - 1).exp() - schedule.log_snr(t).exp()) / 2
        total = total + objective.elbo_weight * share * _x0_per_output(objective, t, schedule)
    return total


def _x0_per_output(objective: ObjectiveConfig, t: Tensor, schedule: Schedule) -> Tensor:
    """The squared error of x0 that a squared error 1 of the prediction at t [B] makes, x_t being given: [B]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = TARGET_COEFFS[objective.prediction](alpha, sigma)
    return (sigma / (alpha * b - sigma * a)) ** 2


def chances(
    objective: ObjectiveConfig,
    seed: int,
    step: int,
    positions: range,
    batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:
    """The uniform numbers of which t are drawn, by position in the global batch: float64 [B]."""
    u = rng.uniform(rng.keys(seed, step, positions, "t", device))
    if not objective.stratified:
        return u
    order = rng.key(seed, step, "strata")
    places = [rng.permute(position, batch_size, order) for position in positions]
    return (torch.tensor(places, dtype=torch.float64, device=u.device) + u) / batch_size


class Uncertainty(nn.Module):
    """Weighs the loss at t by 1 / exp(u(t)), where exp(u) is learned beside the network to be what is left of the loss
    there, so that every level of noise teaches as much (Karras et al. 2024, eq. 21: u least of L / exp(u) + u). Over
    the t that are drawn the mean weight is 1, so that gradients stay about as large as clipping expects them.
    """

    WAVES = 64  # of t, that u is made of
    SHARE = 0.01  # of u's own loss: Adam's steps are as long, and what clips the network's gradient hardly sees it

    def __init__(self, objective: ObjectiveConfig, T: int) -> None:
        super().__init__()
        self.objective, self.T = objective, T
        self.waves = nn.Parameter(torch.zeros(self.WAVES))

    def u(self, t: Tensor) -> Tensor:
        """The logarithm of the loss expected at t [B]: [B]."""
        return (timestep_embedding(t, self.WAVES) * self.waves).sum(1)

    def weight(self, t: Tensor) -> Tensor:
        """t [B] -> [B], of mean 1 over the t that are drawn."""
        shares = (torch.arange(256, dtype=torch.float64, device=t.device) + 0.5) / 256
        drawn = DRAWS[self.objective.timestep_sampling](self.objective, shares, self.T)
        return (-self.u(t)).exp() / (-self.u(drawn)).exp().mean()

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """Losses [B] at t [B], as large as they were: only what they teach, the network and u, is weighed."""
        u = self.u(t)
        taught = losses * self.weight(t).detach() + self.SHARE * (losses.detach() / u.exp() + u)
        return losses.detach() + (taught - taught.detach())


def normal_quantile(u: Tensor) -> Tensor:
    """The standard normal number below which a share u of all lies; u in [0, 1), float64."""
    return torch.special.ndtri(u.clamp(2.0**-54, 1 - 2.0**-53))
