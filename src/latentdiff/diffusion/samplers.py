"""Samplers: from noise to a clean latent with a denoiser, denoise(x, t) -> (x0, eps) where x = alpha·x0 + sigma·eps.

Each sampler is a generator that yields (x, x0) after every step: the current sample and the predicted clean sample.

Args of all samplers:
    x: the initial noise [B, ...].
    levels: the falling noise levels where steps start and end, as floats, so that no step waits for the device.
    eta: 0 is deterministic, 1 is ancestral; used by ddim and dpmpp_2m only.
    noise: returns standard normal noise of x's shape; used with eta above 0 and by lcm.

A step is computed from x0 and eps and not from x, because a denoiser may change x first (guidance.blend_known).
"""

import functools
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule

# t is one float for the whole batch from a sampler, which the host can read without a sync; [B] in distillation
Denoise = Callable[[Tensor, float | Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[], Tensor] | None
Steps = Iterator[tuple[Tensor, Tensor]]


def broadcast_t(t: float | Tensor, x: Tensor) -> Tensor:
    """One timestep per sample of x [B, ...]: [B]; a tensor is returned unchanged."""
    return t if isinstance(t, Tensor) else x.new_full((len(x),), t)


class NoiseLevel(NamedTuple):
    t: float | None  # None: the clean sample
    alpha: float
    sigma: float
    lam: float  # log(alpha / sigma), half the log-SNR


Levels = list[NoiseLevel]


def noise_levels(ts: Tensor, schedule: Schedule, last: float | None = None) -> Levels:
    """The noise levels of falling timesteps [steps], then of the timestep `last` (default: the clean sample)."""
    ts = ts.to(torch.float64) if last is None else torch.tensor([*ts.tolist(), last], dtype=torch.float64)
    assert (ts.diff() < 0).all(), "the timesteps of a sampler must fall"
    columns = ts, schedule.alpha(ts), schedule.sigma(ts), schedule.log_snr(ts) / 2
    levels = [NoiseLevel(*values) for values in zip(*(column.tolist() for column in columns))]
    return levels if last is not None else [*levels, NoiseLevel(None, 1.0, 0.0, math.inf)]


@torch.no_grad()
def ddim(denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None) -> Steps:
    """DDIM (Song et al. 2021, eq. 12 and 16); eta = 1 is ancestral DDPM."""
    for cur, next_ in pairwise(levels):
        x0, eps = denoise(x, cur.t)
        sigma_up = eta * next_.sigma * math.sqrt(-math.expm1(2 * (cur.lam - next_.lam)))  # std of the added noise
        x = next_.alpha * x0 + math.sqrt(next_.sigma**2 - sigma_up**2) * eps
        if sigma_up > 0:
            x = x + sigma_up * noise()
        yield x, x0


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): DDIM with x0 extrapolated in log-SNR; eta = 1 is its SDE form."""
    x0_prev, h_prev = 0.0, math.inf
    for cur, next_ in pairwise(levels):
        x0, eps = denoise(x, cur.t)
        h = next_.lam - cur.lam
        exp_neg_h = math.exp(-h)
        r = 0.0 if math.isinf(h) else h / (2 * h_prev)  # first order if a step is infinitely long in log-SNR
        x0_change = (1 - exp_neg_h ** (1 + eta)) * r * (x0 - x0_prev)
        x = next_.alpha * (x0 + x0_change) + next_.sigma * exp_neg_h**eta * eps
        if eta > 0 and next_.sigma > 0:
            x = x + next_.sigma * math.sqrt(1 - exp_neg_h ** (2 * eta)) * noise()
        yield x, x0
        x0_prev, h_prev = x0, h


@torch.no_grad()
def heun(denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None) -> Steps:
    """Heun's method (Karras et al. 2022, alg. 1) on dx = x0·dalpha + eps·dsigma: a DDIM step, then the trapezoid."""
    for cur, next_ in pairwise(levels):
        x0, eps = denoise(x, cur.t)
        x = next_.alpha * x0 + next_.sigma * eps
        if next_.t is not None:
            x0_next, eps_next = denoise(x, next_.t)
            x0_mean, eps_mean = (x0 + x0_next) / 2, (eps + eps_next) / 2
            x = x + (next_.alpha - cur.alpha) * (x0_mean - x0) + (next_.sigma - cur.sigma) * (eps_mean - eps)
        yield x, x0


@torch.no_grad()
def unipc(denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None) -> Steps:
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, alg. 2): third order with one evaluation per step.

    The predictor is DPM-Solver++(2M); the corrector uses the next step's x0, so it costs no extra evaluation.
    """
    x0_prev, change, h_prev, r = 0.0, 0.0, math.inf, math.inf
    for cur, next_ in pairwise(levels):
        x0, eps = denoise(x, cur.t)
        if math.isfinite(h_prev):  # the predictor of the last step had added cur.alpha·(1 - e^-h)·change / 2
            weight_predicted, weight_x0 = _unic_weights(h_prev, r)
            correction = (weight_predicted - 0.5) * change + weight_x0 * (x0 - x0_prev)
            eps = eps - cur.alpha / cur.sigma * math.expm1(-h_prev) * correction
        h = next_.lam - cur.lam
        r = h_prev / h
        change = 0.0 if math.isinf(h) or math.isinf(r) else (x0 - x0_prev) / r
        x = next_.alpha * (x0 - math.expm1(-h) * change / 2) + next_.sigma * eps
        yield x, x0
        x0_prev, h_prev = x0, h


def _unic_weights(h: float, r: float) -> tuple[float, float]:
    """Weights of the predicted and of the evaluated change of x0 over a step h in log(alpha / sigma), after one of r·h.

    Zhao et al. 2023, eq. 4, with data prediction.
    """
    b1 = -1 / math.expm1(-h) - 1 / h
    b2 = -1 / math.expm1(-h) - 2 * b1 / h
    predicted = (b1 - b2) / (1 + r)
    return (0.5, 0.5) if math.isinf(r) else (predicted, b1 - predicted)


@torch.no_grad()
def plms(
    denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None, warmup: bool = True
) -> Steps:  # fmt: skip
    """PLMS (Liu et al. 2022, eq. 12): DDIM with eps extrapolated from four steps.

    warmup: two evaluations in the first step, which has no earlier eps.
    """
    history: list[Tensor] = []  # eps, newest first
    for cur, next_ in pairwise(levels):
        x0, eps = denoise(x, cur.t)
        history = [eps, *history[:3]]
        eps_extrapolated = sum(weight * eps for weight, eps in zip(ADAMS_BASHFORTH[len(history) - 1], history))
        if warmup and len(history) == 1 and next_.t is not None:
            eps_extrapolated = (eps + denoise(_ddim_step(x0, eps, eps, cur, next_), next_.t)[1]) / 2
        x = _ddim_step(x0, eps, eps_extrapolated, cur, next_)
        yield x, x0


ipndm = functools.partial(plms, warmup=False)  # Zhang & Chen 2023, sec. 4
ADAMS_BASHFORTH = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _ddim_step(x0: Tensor, eps: Tensor, eps_extrapolated: Tensor, cur: NoiseLevel, next_: NoiseLevel) -> Tensor:
    """The DDIM step from x = alpha·x0 + sigma·eps with another eps, for which x0 changes too.

    x0 is kept if alpha grows more than tenfold in the step, since the error of eps_extrapolated would grow as much.
    """
    ratio = cur.sigma / cur.alpha if next_.alpha <= 10 * cur.alpha else 0.0
    return next_.alpha * (x0 + ratio * (eps - eps_extrapolated)) + next_.sigma * eps_extrapolated


@torch.no_grad()
def lcm(denoise: Denoise, x: Tensor, levels: Levels, eta: float = 0.0, noise: Noise = None) -> Steps:
    """Multistep consistency sampling (Song et al. 2023, alg. 1), for distilled runs: x0 is noised again every step."""
    for cur, next_ in pairwise(levels):
        x0, _ = denoise(x, cur.t)
        x = next_.alpha * x0 + (next_.sigma * noise() if next_.sigma > 0 else 0)
        yield x, x0


SAMPLERS = {  # name -> function, and its eta if it is fixed
    "ddpm": (ddim, 1.0),  # Ho et al. 2020, alg. 2, with the posterior variance
    "ddim": (ddim, None),
    "plms": (plms, 0.0),
    "heun": (heun, 0.0),
    "dpmpp_2m": (dpmpp_2m, 0.0),
    "dpmpp_2m_sde": (dpmpp_2m, 1.0),
    "unipc": (unipc, 0.0),
    "ipndm": (ipndm, 0.0),
    "lcm": (lcm, 0.0),
}


def sample(
    name: str, denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None
) -> Iterator[Tensor]:
    """Run a sampler by name at falling timesteps ts; yields the predicted x0 after every step, last the result."""
    check_sampler(name, eta)
    sampler, fixed_eta = SAMPLERS[name]
    levels = noise_levels(ts, schedule)
    for _, x0 in sampler(denoise, x, levels, eta if fixed_eta is None else fixed_eta, noise):
        yield x0


def check_sampler(name: str, eta: float = 0.0) -> None:
    """Refuse an unknown sampler, and an eta that the sampler does not use."""
    if name not in SAMPLERS:
        raise UserError(f"sampler is {name!r}; it must be one of {', '.join(SAMPLERS)}")
    fixed_eta = SAMPLERS[name][1]
    if not 0 <= eta <= 1 or fixed_eta is not None and eta not in (0, fixed_eta):
        raise UserError(f"eta is {eta} with sampler={name}; only ddim has an eta, from 0 to 1")
