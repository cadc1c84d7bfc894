"""Noise schedules, x_t = alpha·x0 + sigma·eps, and the timesteps of sampling."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentdiff.config import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    kind: str = "scaled_linear"  # scaled_linear, linear, sqrt, cosine, sigmoid (variance-preserving) or flow (straight)
    timesteps: int = 1000  # T; t is in 0..T-1
    beta_start: float = 0.00085  # variance of the noise added by the first step; default: the text-to-image model's
    beta_end: float = 0.012  # variance of the noise added by the last step
    cosine_s: float = 0.008  # offset of the cosine schedule
    zero_terminal_snr: bool = False  # no signal at the last timestep (Lin et al. 2023); needs prediction v or x0
    snr_shift: float = 1.0  # multiplies sigma / alpha; about sqrt(numbers in a latent / 4096) for large latents


def _cosine_betas(c: ScheduleConfig) -> np.ndarray:
    """Nichol & Dhariwal 2021, eq. 17."""
    s = np.arange(c.timesteps + 1) / c.timesteps
    alphas_cumprod = np.cos((s + c.cosine_s) / (1 + c.cosine_s) * np.pi / 2) ** 2
    return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0, 0.999)


def _sigmoid_betas(c: ScheduleConfig) -> np.ndarray:
    """Chen 2023, "On the importance of noise scheduling", sec. 3.1: start -3, end 3, tau 1."""
    s = 1 / (1 + np.exp(3 - 6 * np.arange(c.timesteps + 1) / c.timesteps))
    alphas_cumprod = (s[-1] - s) / (s[-1] - s[0])
    return np.clip(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0, 0.999)


BETAS = {  # the original release calls the first "linear" and the second "sqrt_linear"
    "scaled_linear": lambda c: np.linspace(c.beta_start**0.5, c.beta_end**0.5, c.timesteps) ** 2,
    "linear": lambda c: np.linspace(c.beta_start, c.beta_end, c.timesteps),
    "sqrt": lambda c: np.linspace(c.beta_start, c.beta_end, c.timesteps) ** 0.5,
    "cosine": _cosine_betas,
    "sigmoid": _sigmoid_betas,
}


class Schedule:
    """alpha, sigma and log-SNR at any t in 0..T-1, computed in float64; not part of the state dict.

    Variance-preserving kinds are a table, exact at integer t and with log-SNR interpolated between; flow is a formula.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        if config.kind != "flow" and config.kind not in BETAS:
            raise UserError(f"schedule.kind is {config.kind!r}; it must be one of {', '.join(BETAS)}, flow")
        if config.snr_shift <= 0:
            raise UserError(f"schedule.snr_shift is {config.snr_shift}; it must be above 0 (1: no shift)")
        self.config = config
        self.T = config.timesteps
        self.flow = config.kind == "flow"
        table = torch.empty(0) if self.flow else _log_snr_table(config)
        self._tables = {torch.device("cpu"): table}

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha² / sigma²) at t [B], -inf where there is no signal: [B] in t's dtype."""
        return _to_dtype_of(t, self._log_snr(t))

    def alpha(self, t: Tensor) -> Tensor:
        """The factor of x0 at t [B]: [B] in t's dtype (float32 for integer t)."""
        log_snr = self._log_snr(t)
        return _to_dtype_of(t, torch.sigmoid(log_snr / 2) if self.flow else torch.sigmoid(log_snr).sqrt())

    def sigma(self, t: Tensor) -> Tensor:
        """The factor of eps at t [B]: [B] in t's dtype (float32 for integer t)."""
        log_snr = self._log_snr(t)
        return _to_dtype_of(t, torch.sigmoid(-log_snr / 2) if self.flow else torch.sigmoid(-log_snr).sqrt())

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha² at every integer t: float32 [T]; variance-preserving kinds only."""
        assert not self.flow, "a flow schedule has no alphas_cumprod; use alpha(t) and sigma(t)"
        return torch.sigmoid(self._tables[torch.device("cpu")]).to(torch.float32)

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha·x0 + sigma·eps (Ho et al. 2020, eq. 4): x0, eps [B, ...], t [B]."""
        return append_dims(self.alpha(t), x0) * x0 + append_dims(self.sigma(t), x0) * eps

    def _log_snr(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        if self.flow:
            s = (t + 1) / self.T  # sigma / (alpha + sigma) before the shift, 1/T..1
            return 2 * (torch.log1p(-s) - torch.log(s) - np.log(self.config.snr_shift))
        if t.device not in self._tables:
            self._tables[t.device] = self._tables[torch.device("cpu")].to(t.device)
        return _interpolate(self._tables[t.device], t)


def append_dims(a: Tensor, x: Tensor) -> Tensor:
    """One number per sample [B] in the dtype and with the number of dimensions of x: [B, 1, ...]."""
    return a.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def _log_snr_table(config: ScheduleConfig) -> Tensor:
    alphas_cumprod = np.cumprod(1 - BETAS[config.kind](config))
    if config.zero_terminal_snr:  # Lin et al. 2023, alg. 1: shift the last alpha to 0, scale to keep the first
        alphas = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    with np.errstate(divide="ignore"):
        log_snr = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod) - 2 * np.log(config.snr_shift)
    return torch.from_numpy(log_snr)


def _interpolate(table: Tensor, t: Tensor) -> Tensor:
    """The table at fractional indices; if the next entry is -inf, alpha / sigma is interpolated instead."""
    below = t.floor().long().clamp(0, len(table) - 1)
    above = (below + 1).clamp(max=len(table) - 1)
    fraction = t - below
    start, end = table[below], table[above]
    change = torch.where(torch.isinf(end), 2 * torch.log1p(-fraction), fraction * (end - start))
    return torch.where(fraction == 0, start, start + change)


def _to_dtype_of(t: Tensor, value: Tensor) -> Tensor:
    return value.to(t.dtype if t.is_floating_point() else torch.float32)


# ---- timesteps of sampling


def _falling(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps, dtype=torch.float64)  # a single step is at 1


def _t_at_noise(fraction: Tensor, schedule: Schedule, rho: float) -> Tensor:
    """The t at which (sigma / alpha)^(1/rho), or log(sigma / alpha) if rho is 0, is at a fraction of its range."""
    every_t = torch.arange(schedule.T, dtype=torch.float64)
    log_noise = -schedule.log_snr(every_t) / 2  # log(sigma / alpha), rising
    count = log_noise.isfinite().sum()  # without the last timestep if that has no signal
    noise = torch.exp(log_noise[:count] / rho) if rho else log_noise[:count]
    target = noise[0] + fraction * (noise[-1] - noise[0])
    ts = torch.from_numpy(np.interp(target.numpy(), noise.numpy(), every_t[:count].numpy()))
    return torch.cat([every_t[-1:], ts[1:]])


SPACINGS = {  # all but uniform start at T-1
    "trailing": lambda steps, s: s.T - 1 - torch.arange(steps, dtype=torch.float64) * s.T / steps,  # Lin et al. 2023
    "linspace": lambda steps, s: (s.T - 1) * _falling(steps),  # even, and ends at 0
    "quadratic": lambda steps, s: (s.T - 1) * _falling(steps) ** 2,  # best for few steps (Song et al. 2021, app. D.2)
    "log_snr": lambda steps, s: _t_at_noise(_falling(steps), s, 0.0),  # even in log-SNR (Lu et al. 2022)
    "karras": lambda steps, s: _t_at_noise(_falling(steps), s, 7.0),  # Karras et al. 2022, eq. 5
    "uniform": lambda steps, s: torch.arange(0, s.T, s.T // steps, dtype=torch.float64).flip(0) + 1,  # original release
}


def sampling_timesteps(steps: int, schedule: Schedule, spacing: str = "trailing") -> Tensor:
    """The timesteps of sampling, falling: float64 [steps] (with uniform there may be more), on the CPU."""
    if spacing not in SPACINGS:
        raise UserError(f"timestep_spacing is {spacing!r}; it must be one of {', '.join(SPACINGS)}")
    if not 1 <= steps <= schedule.T:
        raise UserError(f"steps is {steps}; it must be 1 to {schedule.T}, the timesteps of the schedule")
    with torch.device("cpu"):
        ts = SPACINGS[spacing](steps, schedule)
    if ts[0] > schedule.T - 1:
        raise UserError(
            f"steps is {steps}, for which timestep_spacing=uniform leaves 0..{schedule.T - 1} "
            f"(as in the original release); use timestep_spacing=trailing"
        )
    return ts


def shift_timesteps(ts: Tensor, schedule: Schedule, shift: float) -> Tensor:
    """Timesteps ts moved towards higher noise, for images larger than in training (Esser et al. 2024, eq. 23).

    The noise fraction s = sigma / (alpha + sigma), relative to that of the last timestep, becomes
    shift·s / (1 + (shift - 1)·s). Larger images need more noise to lose as much information (paper, app. D.1);
    shift = sqrt(pixels / training pixels) keeps the uncertainty about a constant image.
    """
    if shift <= 0:
        raise UserError(f"timestep_shift is {shift}; it must be above 0 (1: no shift)")
    if shift == 1:
        return ts
    with torch.device("cpu"):
        every_t = torch.arange(schedule.T, dtype=torch.float64)
    noise_fraction = lambda t: schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))  # noqa: E731
    fractions = noise_fraction(every_t)
    s = noise_fraction(ts) / fractions[-1]
    target = fractions[-1] * shift * s / (1 + (shift - 1) * s)
    shifted = torch.from_numpy(np.interp(target.numpy(), fractions.numpy(), every_t.numpy()))
    if (shifted.diff() > -1e-3).any():  # steps closer than a thousandth of a timestep
        raise UserError(f"timestep_shift is {shift}, which leaves no room for {len(ts)} steps; use a shift closer to 1")
    return shifted
