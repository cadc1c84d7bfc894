"""What training minimises: the prediction, the distance, how t is drawn, and how much an error at each t weighs."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.diffusion.parameterization import MIX
from latentdiff.diffusion.schedule import Schedule
from latentdiff.layers import timestep_embedding


@dataclass(frozen=True)
class Objective:
    prediction: str = "eps"  # what the U-Net predicts: eps, x0, v, or flow (with schedule.kind=flow)
    loss: str = "l2"  # l2, l1 or huber
    timesteps: str = "uniform"  # how t is drawn: uniform, logit_normal (the middle more often) or importance (by loss)
    logit_mean: float = 0.0  # of logit_normal; above 0: more noise
    logit_std: float = 1.0  # of logit_normal; above 1: more of both ends
    stratified: bool = False  # the t of a batch are spread evenly: one in each of batch_size equal shares
    weighting: str = "none"  # of an error at t: none, min_snr, p2, flow (as of the velocity) or uncertainty (learned)
    gamma: float = 5.0  # of min_snr: the signal-to-noise ratio above which an error weighs no more
    elbo: float = 0.0  # weight of the variational bound, added to the loss (the original's original_elbo_weight)

    def __post_init__(self) -> None:
        for name, known in (("loss", DISTANCES), ("timesteps", DRAWS), ("weighting", WEIGHTS)):
            if getattr(self, name) not in known:
                raise UserError(f"objective.{name} is {getattr(self, name)!r}; it must be {' or '.join(known)}")
        if self.elbo and self.weighting == "uncertainty":
            raise UserError(
                f"objective.elbo is {self.elbo:g}; weighting=uncertainty learns a weight of t away: it must be 0"
            )
        for name in ("gamma", "logit_std"):
            if not getattr(self, name) > 0:
                raise UserError(f"objective.{name} is {getattr(self, name)}; it must be above 0")


DISTANCES = {
    "l2": lambda error: error.square(),
    "l1": lambda error: error.abs(),
    "huber": lambda error: F.huber_loss(error, torch.zeros_like(error), reduction="none"),
}
DRAWS = {  # u uniform in [0, 1) -> t in 0..T-1: quantile functions
    "uniform": lambda o, u, T: (u * T).floor(),
    "importance": lambda o, u, T: (u * T).floor(),  # what Importance departs from
    "logit_normal": lambda o, u, T: torch.sigmoid(o.logit_mean + o.logit_std * normal_quantile(u)) * (T - 1),
}
WEIGHTS = {  # of a squared error of x0, by the signal-to-noise ratio; that of another prediction's follows
    "none": None,
    "min_snr": lambda o, snr: snr.clamp(max=o.gamma),  # Hang et al. 2023, eq. 6
    "p2": lambda o, snr: snr / (1 + snr),  # Choi et al. 2022, eq. 8, with k and gamma 1
    "flow": lambda o, snr: (
        (1 + snr.sqrt()).square().clamp(max=400)
    ),  # 1 / sigma²; Li & He 2025, whose sigma ends at 0.05
    "uncertainty": None,  # learned, by Uncertainty
}


def distance(objective: Objective, error: Tensor) -> Tensor:
    """[B, ...] -> [B], a mean over each sample."""
    return DISTANCES[objective.loss](error).flatten(1).mean(1)


def weight(objective: Objective, t: Tensor, schedule: Schedule) -> Tensor:
    """What an error of the prediction at t [B] weighs, but for what is learned (Uncertainty): float64 [B]."""
    t, weighted = t.to(torch.float64), WEIGHTS[objective.weighting]
    total = torch.ones_like(t)
    if weighted is not None:
        total = weighted(objective, schedule.log_snr(t).exp()) * _x0_per_output(objective, t, schedule)
    if objective.elbo:  # the step's share of the bound (Kingma et al. 2021, eq. 14); t = 0 weighs as t = 1
        t = t.clamp(min=1)
        share = (schedule.log_snr(t - 1).exp() - schedule.log_snr(t).exp()) / 2
        total = total + objective.elbo * share * _x0_per_output(objective, t, schedule)
    return total


def _x0_per_output(objective: Objective, t: Tensor, schedule: Schedule) -> Tensor:
    """The squared error of x0 that a squared error 1 of the prediction at t [B] makes, x_t being given: [B]."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    a, b = MIX[objective.prediction](alpha, sigma)
    return (sigma / (alpha * b - sigma * a)) ** 2


def chances(
    objective: Objective, seed: int, step: int, positions: range, batch_size: int, device: torch.device | str = "cpu"
) -> Tensor:
    """The uniform numbers of which t are drawn, by position in the global batch: float64 [B]."""
    u = rng.uniform(rng.keys(seed, step, positions, "t", device))
    if not objective.stratified:
        return u
    order = rng.key(seed, step, "strata")
    places = [rng.permute(position, batch_size, order) for position in positions]
    return (torch.tensor(places, dtype=torch.float64, device=u.device) + u) / batch_size


class Importance(nn.Module):
    """Draws t in proportion to sqrt(E[loss²]) and divides the loss by that, so that its mean stays what it was while
    its variance falls (Nichol & Dhariwal 2021, eq. 18). The last losses of every t are part of the model's state."""

    LAST, UNIFORM = 10, 0.001  # losses that are kept per t; share of t that are drawn uniformly all the same

    def __init__(self, T: int) -> None:
        super().__init__()
        self.register_buffer("losses", torch.zeros(T, self.LAST))  # the newest last
        self.register_buffer("counts", torch.zeros(T, dtype=torch.int64))
        self.noted: list[tuple[range, Tensor]] = []

    def p(self) -> Tensor:
        """The probability of every t, uniform until each has its losses: float64 [T]."""
        T, size = len(self.counts), self.losses.double().square().mean(1).sqrt()
        learned = size / size.sum() * (1 - self.UNIFORM) + self.UNIFORM / T
        return torch.where((self.counts == self.LAST).all() & (size.sum() > 0), learned, 1 / T)

    def draw(self, u: Tensor) -> Tensor:
        """u uniform in [0, 1), [B] -> t [B]."""
        return torch.searchsorted(self.p().cumsum(0), u, right=True).clamp(max=len(self.counts) - 1).double()

    def weight(self, t: Tensor) -> Tensor:
        """1 / (T·p(t)): t [B] -> float64 [B]."""
        return 1 / (len(self.counts) * self.p()[t.long()])

    def note(self, positions: range, t: Tensor, losses: Tensor) -> None:
        """Remember what a piece of the batch gave, losses [B] as weighted."""
        self.noted.append((positions, torch.stack([t.double(), losses.detach() / self.weight(t)], 1)))

    def learn(self, batch_size: int, share: Callable[[Tensor], Tensor]) -> None:
        """After a step: take in all ranks' losses, in the order of the batch; share: the sum of a tensor over ranks.

        The host waits for nothing.
        """
        pairs = torch.zeros(batch_size, 2, dtype=torch.float64, device=self.losses.device)
        for positions, found in self.noted:
            pairs[positions.start : positions.stop : positions.step] = found
        self.noted.clear()
        t, losses = share(pairs).unbind(1)
        T, size = self.losses.shape
        numbers = torch.arange(max(T, size), device=t.device)
        old, new = numbers[:size] >= size - self.counts[:, None], (t == numbers[:T, None]) & losses.isfinite()
        known = torch.cat([old, new], 1)  # [T, size + B], of every t the losses that it had and those that are its own
        row = torch.where(known, torch.cat([self.losses.double(), losses.expand(T, -1)], 1), 0.0)
        newest = known.byte().sort(dim=1, stable=True).indices[:, -size:]
        self.losses.copy_(row.gather(1, newest))
        self.counts.copy_(known.sum(1).clamp(max=size))


class Uncertainty(nn.Module):
    """Weighs the loss at t by 1 / exp(u(t)), where exp(u) is learned beside the network to be what is left of the loss
    there, so that every level of noise teaches as much (Karras et al. 2024, eq. 21: u least of L / exp(u) + u). Over
    the t that are drawn the mean weight is 1, so that gradients stay about as large as clipping expects them.
    """

    WAVES = 64  # of t, that u is made of
    SHARE = 0.01  # of u's own loss: Adam's steps are as long, and what clips the network's gradient hardly sees it

    def __init__(self, objective: Objective, T: int) -> None:
        super().__init__()
        self.objective, self.T = objective, T
        self.waves = nn.Parameter(torch.zeros(self.WAVES))

    def u(self, t: Tensor) -> Tensor:
        """The logarithm of the loss expected at t [B]: [B]."""
        return (timestep_embedding(t, self.WAVES) * self.waves).sum(1)

    def weight(self, t: Tensor) -> Tensor:
        """t [B] -> [B], of mean 1 over the t that are drawn."""
        shares = (torch.arange(256, dtype=torch.float64, device=t.device) + 0.5) / 256
        drawn = DRAWS[self.objective.timesteps](self.objective, shares, self.T)
        return (-self.u(t)).exp() / (-self.u(drawn)).exp().mean()

    def forward(self, losses: Tensor, t: Tensor) -> Tensor:
        """Losses [B] at t [B], as large as they were: only what they teach, the network and u, is weighed."""
        u = self.u(t)
        taught = losses * self.weight(t).detach() + self.SHARE * (losses.detach() / u.exp() + u)
        return losses.detach() + (taught - taught.detach())


def normal_quantile(u: Tensor) -> Tensor:
    """The standard normal number below which a share u of all lies; u in [0, 1), float64."""
    return torch.special.ndtri(u.clamp(2.0**-54, 1 - 2.0**-53))
