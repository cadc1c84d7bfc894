"""Samplers: from noise to an image, over one function denoise(x, t [B]) -> (x0, eps) with x = alpha·x0 + sigma·eps.

Each is a generator that yields (x, x0) after every step: the image so far and the clean guess behind it; the last x is
the result. `ts` are timesteps from the noisiest down, on the CPU: no step waits for the device. After them comes the
clean image or, with `last`, the noise level of that timestep. noise() returns standard normal numbers of x's shape.

A step is made of x0 and eps, never of x itself, so that a denoise which alters x (known pixels, guidance) is obeyed.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[], Tensor] | None
Steps = Iterator[tuple[Tensor, Tensor]]
Last = float | None


@torch.no_grad()
def ddim(
    denoise: Denoise,
    x: Tensor,
    ts: Tensor,
    schedule: Schedule,
    eta: float = 0.0,
    noise: Noise = None,
    last: Last = None,
) -> Steps:
    """DDIM (Song et al. 2021, eq. 12 and 16). eta = 0 is deterministic, eta = 1 is ancestral DDPM."""
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        fresh = eta * there.sigma * math.sqrt(-math.expm1(2 * (here.lam - there.lam)))  # noise that is drawn anew
        x = there.alpha * x0 + math.sqrt(there.sigma**2 - fresh**2) * eps
        if fresh > 0:
            x = x + fresh * noise()
        yield x, x0


@torch.no_grad()
def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    ts: Tensor,
    schedule: Schedule,
    eta: float = 0.0,
    noise: Noise = None,
    last: Last = None,
) -> Steps:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2): DDIM with x0 extrapolated along log-SNR. eta = 1 is its SDE form."""
    x0_before, h_before = 0.0, math.inf
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        h = there.lam - here.lam
        kept = math.exp(-h)  # share of x's old noise in its new noise, at eta = 1
        ahead = 0.0 if math.isinf(h) else h / (2 * h_before)  # first order where a step has no finite length
        x = there.alpha * (x0 + (1 - kept ** (1 + eta)) * ahead * (x0 - x0_before)) + there.sigma * kept**eta * eps
        if eta > 0 and there.sigma > 0:
            x = x + there.sigma * math.sqrt(1 - kept ** (2 * eta)) * noise()
        yield x, x0
        x0_before, h_before = x0, h


@torch.no_grad()
def heun(
    denoise: Denoise,
    x: Tensor,
    ts: Tensor,
    schedule: Schedule,
    eta: float = 0.0,
    noise: Noise = None,
    last: Last = None,
) -> Steps:
    """Heun's method (Karras et al. 2022, alg. 1) on dx = x0·dalpha + eps·dsigma: a DDIM step, then the trapezoid."""
    assert eta == 0, "heun is deterministic; eta must be 0"
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        x = there.alpha * x0 + there.sigma * eps
        if there.t is not None:
            x0_there, eps_there = denoise(x, there.t)
            x = (
                x
                + (there.alpha - here.alpha) * (x0_there - x0) / 2
                + (there.sigma - here.sigma) * (eps_there - eps) / 2
            )
        yield x, x0


SAMPLERS = {  # name -> function, and its eta where that is not the caller's choice
    "ddpm": (ddim, 1.0),  # Ho et al. 2020, alg. 2, with the posterior variance
    "ddim": (ddim, None),
    "heun": (heun, 0.0),
    "dpmpp_2m": (dpmpp_2m, 0.0),
    "dpmpp_2m_sde": (dpmpp_2m, 1.0),
}


def sample(
    name: str, denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None
) -> Iterator[Tensor]:
    """Run a sampler by name down to the clean image; yields its guess of it at every step, the last is the result."""
    check(name, eta)
    sampler, fixed = SAMPLERS[name]
    for _, x0 in sampler(denoise, x, ts, schedule, eta if fixed is None else fixed, noise):
        yield x0


def check(name: str, eta: float = 0.0) -> None:
    """Refuse a sampler that is none, and an eta that it does not take."""
    if name not in SAMPLERS:
        raise UserError(f"sampler is {name!r}; it can be {', '.join(SAMPLERS)}")
    fixed = SAMPLERS[name][1]
    if not 0 <= eta <= 1 or fixed is not None and eta not in (0, fixed):
        raise UserError(f"eta is {eta} with sampler={name}; only ddim takes one, 0 to 1")


class Level(NamedTuple):
    """A place on the way: its timestep for every sample [B] (None: the clean image), and its numbers for the host."""

    t: Tensor | None
    alpha: float
    sigma: float
    lam: float  # log(alpha / sigma), half the log-SNR


def _steps(x: Tensor, ts: Tensor, schedule: Schedule, last: Last) -> Iterator[tuple[Level, Level]]:
    """Where each step begins and ends."""
    ts = ts.to(torch.float64) if last is None else torch.tensor([*ts.tolist(), last], dtype=torch.float64)
    assert (ts.diff() < 0).all(), "the timesteps of a sampler must fall"
    numbers = zip(schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist(), (schedule.log_snr(ts) / 2).tolist())
    levels = [Level(x.new_full((len(x),), t), *rest) for t, rest in zip(ts.tolist(), numbers)]
    return pairwise(levels if last is not None else [*levels, Level(None, 1.0, 0.0, math.inf)])
