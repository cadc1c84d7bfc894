"""The training objective: prediction, loss, distribution of timesteps, and weight of each timestep."""

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
    timestep_sampling: str = "uniform"  # distribution of t in training: uniform, or logit_normal (centered)
    logit_mean: float = 0.0  # of logit_normal; above 0: more noise
    logit_std: float = 1.0  # of logit_normal; above 1: more of both ends
    stratified: bool = False  # the t of a batch are evenly spread: one in each of batch_size equal intervals
    weighting: str = "none"  # of the loss at t: none, min_snr, p2, flow (as if of the velocity) or learned (EDM2)
    min_snr_gamma: float = 5.0  # of min_snr: the signal-to-noise ratio above which the weight is constant
    elbo_weight: float = 0.0  # of the variational bound, added to the loss (original_elbo_weight of the release)

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("timestep_sampling", TIMESTEP_SAMPLERS), ("weighting", WEIGHTINGS)):
            if getattr(self, name) not in known:
                raise UserError(f"objective.{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        if self.elbo_weight and self.weighting == "learned":
            raise UserError(f"objective.elbo_weight is {self.elbo_weight:g}; it must be 0 with weighting=learned")
        for name in ("min_snr_gamma", "logit_std"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be above 0")


LOSSES = {
    "l2": lambda error: error.square(),
    "l1": lambda error: error.abs(),
    "huber": lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none"),
}
TIMESTEP_SAMPLERS = {  # quantile functions: u uniform in [0, 1) -> t in 0..T-1
    "uniform": lambda o, u, T: (u * T).floor(),
    "logit_normal": lambda o, u, T: torch.sigmoid(o.logit_mean + o.logit_std * normal_quantile(u)) * (T - 1),
}
WEIGHTINGS = {  # signal-to-noise ratio -> weight of a squared error of x0, from which that of other predictions follows
    "none": None,
    "min_snr": lambda o, snr: snr.clamp(max=o.min_snr_gamma),  # Hang et al. 2023, eq. 6
    "p2": lambda o, snr: snr / (1 + snr),  # Choi et al. 2022, eq. 8, with k and gamma 1
    "flow": lambda o, snr: (1 + snr.sqrt()).square().clamp(max=400),  # 1 / sigma², sigma >= 0.05; Li & He 2025
    "learned": None,  # LearnedWeighting
}


def per_sample_loss(objective: ObjectiveConfig, error: Tensor) -> Tensor:
    """The mean loss of each sample: [B, ...] -> [B]."""
    return LOSSES[objective.loss](error).flatten(1).mean(1)


def loss_weight(objective: ObjectiveConfig, t: Tensor, schedule: Schedule) -> Tensor:
    """The weight of the loss at t [B], without that of LearnedWeighting: float64 [B]."""
    t, weighting = t.to(torch.float64), WEIGHTINGS[objective.weighting]
    weight = torch.ones_like(t)
    if weighting is not None:
        weight = weighting(objective, schedule.log_snr(t).exp()) * _x0_per_output(objective, t, schedule)
    if objective.elbo_weight:
        t = t.clamp(min=1)  # t = 0 gets the weight of t = 1, as in the original release
        bound = (schedule.log_snr(t - 1).exp() - schedule.log_snr(t).exp()) / 2  # Kingma et al. 2021, eq. 14
        weight = weight + objective.elbo_weight * bound * _x0_per_output(objective, t, schedule)
    return weight


def _x0_per_output(objective: ObjectiveConfig, t: Tensor, schedule: Schedule) -> Tensor:
    """The squared error of x0 per squared error of the prediction, for a given x_t: t [B] -> [B]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = TARGET_COEFFS[objective.prediction](alpha, sigma)
    return (sigma / (alpha * b - sigma * a)) ** 2


def timestep_uniforms(
    objective: ObjectiveConfig, seed: int, step: int, positions: range, batch_size: int,
    device: torch.device | str = "cpu",
) -> Tensor:  # fmt: skip
    """The uniform random numbers from which t is sampled, by position in the global batch: float64 [B]."""
    u = rng.uniform(rng.keys(seed, step, positions, "t", device))
    if not objective.stratified:
        return u
    order = rng.key(seed, step, "strata")
    strata = [rng.permute(position, batch_size, order) for position in positions]
    return (torch.tensor(strata, dtype=torch.float64, device=u.device) + u) / batch_size


class LearnedWeighting(nn.Module):
    """Weights the loss L at t by exp(-u(t)), with u learned by minimising L / exp(u) + u (Karras et al. 2024, eq. 21).

    exp(u) then is the expected loss at t, so that all noise levels contribute equally. The weights are normalised to a
    mean of 1 over the sampled t, so that gradients keep about the size that gradient clipping expects.
    """

    FOURIER_FEATURES = 64  # of t, whose weighted sum is u
    U_LOSS_WEIGHT = 0.01  # hardly affects the gradient norm that is clipped, nor u, since Adam is scale-invariant

    def __init__(self, objective: ObjectiveConfig, T: int) -> None:
        super().__init__()
        self.objective, self.T = objective, T
        self.fourier_weights = nn.Parameter(torch.zeros(self.FOURIER_FEATURES))

    def u(self, t: Tensor) -> Tensor:
        """The logarithm of the expected loss at t: [B] -> [B]."""
        return (timestep_embedding(t, self.FOURIER_FEATURES) * self.fourier_weights).sum(1)

    def weight(self, t: Tensor) -> Tensor:
        """The weight of the loss at t, with a mean of 1 over the sampled t: [B] -> [B]."""
        quantiles = (torch.arange(256, dtype=torch.float64, device=t.device) + 0.5) / 256
        sampled_t = TIMESTEP_SAMPLERS[self.objective.timestep_sampling](self.objective, quantiles, self.T)
        return (-self.u(t)).exp() / (-self.u(sampled_t)).exp().mean()

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """The losses [B] at t [B] with unchanged values and weighted gradients, for the network and for u."""
        u = self.u(t)
        weighted = losses * self.weight(t).detach() + self.U_LOSS_WEIGHT * (losses.detach() / u.exp() + u)
        return losses.detach() + (weighted - weighted.detach())


def normal_quantile(u: Tensor) -> Tensor:
    """The quantile function of the standard normal distribution; u in [0, 1), float64."""
    return torch.special.ndtri(u.clamp(2.0**-54, 1 - 2.0**-53))
