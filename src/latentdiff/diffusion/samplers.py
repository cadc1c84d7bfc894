"""Samplers: from noise to an image, over one function denoise(x, t [B]) -> (x0, eps) with x = alpha·x0 + sigma·eps.

Each is a generator that yields (x, x0) after every step: the image so far and the clean guess behind it; the last x is
the result. `ts` are timesteps from the noisiest down, on the CPU: no step waits for the device. After them comes the
clean image or, with `last`, the noise level of that timestep. noise() returns standard normal numbers of x's shape.

A step is made of x0 and eps, never of x itself, so that a denoise which alters x (known pixels, guidance) is obeyed.
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

Denoise = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Noise = Callable[[], Tensor] | None
Steps = Iterator[tuple[Tensor, Tensor]]
Last = float | None


@torch.no_grad()
def ddim(
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None,
) -> Steps:  # fmt: skip
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
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None,
) -> Steps:  # fmt: skip
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
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None,
) -> Steps:  # fmt: skip
    """Heun's method (Karras et al. 2022, alg. 1) on dx = x0·dalpha + eps·dsigma: a DDIM step, then the trapezoid."""
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        x = there.alpha * x0 + there.sigma * eps
        if there.t is not None:
            x0_there, eps_there = denoise(x, there.t)
            x0_mean, eps_mean = (x0 + x0_there) / 2, (eps + eps_there) / 2
            x = x + (there.alpha - here.alpha) * (x0_mean - x0) + (there.sigma - here.sigma) * (eps_mean - eps)
        yield x, x0


@torch.no_grad()
def unipc(
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None,
) -> Steps:  # fmt: skip
    """UniPC-2 with B(h) = e^h - 1 (Zhao et al. 2023, alg. 2): DPM-Solver++(2M), whose x is corrected, for the next
    step, by what the network then says of it; third order at no further evaluation."""
    x0_before, change, h_before, r = 0.0, 0.0, math.inf, math.inf
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        if math.isfinite(h_before):  # here.alpha·(1 - e^-h)·change / 2 is what the last step had guessed
            guessed, measured = _unic(h_before, r)
            correction = (guessed - 0.5) * change + measured * (x0 - x0_before)
            eps = eps - here.alpha / here.sigma * math.expm1(-h_before) * correction
        h = there.lam - here.lam
        r = h_before / h
        change = 0.0 if math.isinf(h) or math.isinf(r) else (x0 - x0_before) / r
        x = there.alpha * (x0 - math.expm1(-h) * change / 2) + there.sigma * eps
        yield x, x0
        x0_before, h_before = x0, h


def _unic(h: float, r: float) -> tuple[float, float]:
    """How much of the change of x0 over a step h in log(alpha / sigma), after one of r·h, is to come from the guess
    before it and from the measurement after it (Zhao et al. 2023, eq. 4, with data prediction)."""
    b1 = -1 / math.expm1(-h) - 1 / h
    b2 = -1 / math.expm1(-h) - 2 * b1 / h
    guessed = (b1 - b2) / (1 + r)
    return (0.5, 0.5) if math.isinf(r) else (guessed, b1 - guessed)


@torch.no_grad()
def plms(
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None, twice: bool = True,
) -> Steps:  # fmt: skip
    """PLMS (Liu et al. 2022, eq. 12): DDIM with eps extrapolated from four steps; the first takes two evaluations."""
    history: list[Tensor] = []
    for here, there in _steps(x, ts, schedule, last):
        x0, eps = denoise(x, here.t)
        history = [eps, *history[:3]]
        ahead = _adams(history)
        if twice and len(history) == 1 and there.t is not None:
            ahead = (eps + denoise(_carried(x0, eps, eps, here, there), there.t)[1]) / 2
        x = _carried(x0, eps, ahead, here, there)
        yield x, x0


ipndm = functools.partial(plms, twice=False)  # Zhang & Chen 2023, sec. 4: one evaluation in the first step too
ADAMS = ((1,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def _adams(history: list[Tensor]) -> Tensor:
    """The Adams-Bashforth extrapolation of up to four values, the newest first."""
    return sum(weight * eps for weight, eps in zip(ADAMS[len(history) - 1], history))


def _carried(x0: Tensor, eps: Tensor, ahead: Tensor, here: "Level", there: "Level") -> Tensor:
    """The DDIM step from x = alpha·x0 + sigma·eps along `ahead` in place of eps, which moves x0 with it.

    x0 stays where alpha grows more than tenfold in a step, or from nothing: an error of `ahead` would grow as much.
    """
    ratio = here.sigma / here.alpha if there.alpha <= 10 * here.alpha else 0.0
    return there.alpha * (x0 + ratio * (eps - ahead)) + there.sigma * ahead


@torch.no_grad()
def lcm(
    denoise: Denoise, x: Tensor, ts: Tensor, schedule: Schedule, eta: float = 0.0, noise: Noise = None,
    last: Last = None,
) -> Steps:  # fmt: skip
    """Multistep consistency sampling (Song et al. 2023, alg. 1): each guess is noised anew. For distilled runs."""
    for here, there in _steps(x, ts, schedule, last):
        x0, _ = denoise(x, here.t)
        x = there.alpha * x0 + (there.sigma * noise() if there.sigma > 0 else 0)
        yield x, x0


SAMPLERS = {  # name -> function, and its eta where that is not the caller's choice
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


def everywhere(t: float, x: Tensor) -> Tensor:
    """One timestep for every sample of x: [B], on its device. `.told` says it to the host, which then need not wait."""
    filled = x.new_full((len(x),), t)
    filled.told = t
    return filled


def _steps(x: Tensor, ts: Tensor, schedule: Schedule, last: Last) -> Iterator[tuple[Level, Level]]:
    """Where each step begins and ends."""
    ts = ts.to(torch.float64) if last is None else torch.tensor([*ts.tolist(), last], dtype=torch.float64)
    assert (ts.diff() < 0).all(), "the timesteps of a sampler must fall"
    numbers = zip(schedule.alpha(ts).tolist(), schedule.sigma(ts).tolist(), (schedule.log_snr(ts) / 2).tolist())
    levels = [Level(everywhere(t, x), *rest) for t, rest in zip(ts.tolist(), numbers)]
    return pairwise(levels if last is not None else [*levels, Level(None, 1.0, 0.0, math.inf)])
