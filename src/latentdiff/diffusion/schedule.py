"""How much signal (alpha) and how much noise (sigma) an image holds at each timestep: x_t = alpha·x0 + sigma·eps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from latentdiff.config import UserError


@dataclass(frozen=True)
class ScheduleConfig:
    kind: str = "scaled_linear"  # scaled_linear, linear, sqrt, cosine, sigmoid (variance-preserving) or flow (straight)
    timesteps: int = 1000  # T; t runs over 0..T-1
    beta_start: float = 0.00085  # noise added by the first step; the text-to-image model's (semantics differ per task)
    beta_end: float = 0.012  # noise added by the last step
    cosine_s: float = 0.008  # offset of the cosine schedule
    zero_terminal_snr: bool = False  # the last step holds no signal at all (Lin et al. 2023); needs prediction v or x0
    snr_shift: float = 1.0  # multiplies sigma / alpha everywhere; about sqrt(numbers in a latent / 4096) for large ones


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
    """alpha, sigma and log-SNR at any t in 0..T-1, whole or not; float64 inside, and no part of the model's weights.

    Variance-preserving kinds hold a table: whole t are exact, log-SNR is interpolated between them. Flow is a formula.
    """

    def __init__(self, config: ScheduleConfig) -> None:
        if config.kind != "flow" and config.kind not in BETAS:
            raise UserError(f"schedule.kind is {config.kind!r}; it can be {', '.join(BETAS)} or flow")
        if config.snr_shift <= 0:
            raise UserError(f"schedule.snr_shift is {config.snr_shift}; it must be above 0 (1 changes nothing)")
        self.config = config
        self.T = config.timesteps
        self.flow = config.kind == "flow"
        table = torch.empty(0) if self.flow else _log_snr_table(config)
        self._tables = {torch.device("cpu"): table}

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha² / sigma²) at t [B] -> [B] in t's precision; -inf where there is no signal."""
        return _precision(self._log_snr(t), t)

    def alpha(self, t: Tensor) -> Tensor:
        """Share of signal at t [B] -> [B] in t's precision."""
        log_snr = self._log_snr(t)
        return _precision(torch.sigmoid(log_snr / 2) if self.flow else torch.sigmoid(log_snr).sqrt(), t)

    def sigma(self, t: Tensor) -> Tensor:
        """Share of noise at t [B] -> [B] in t's precision."""
        log_snr = self._log_snr(t)
        return _precision(torch.sigmoid(-log_snr / 2) if self.flow else torch.sigmoid(-log_snr).sqrt(), t)

    @property
    def alphas_cumprod(self) -> Tensor:
        """alpha² at every whole t: float32 [T]; variance-preserving kinds only."""
        assert not self.flow, "a flow schedule has no alphas_cumprod; use alpha(t) and sigma(t)"
        return torch.sigmoid(self._tables[torch.device("cpu")]).to(torch.float32)

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t = alpha·x0 + sigma·eps (Ho et al. 2020, eq. 4): x0, eps [B, ...], t [B]."""
        return column(self.alpha(t), x0) * x0 + column(self.sigma(t), x0) * eps

    def _log_snr(self, t: Tensor) -> Tensor:
        t = t.to(torch.float64)
        if self.flow:
            s = (t + 1) / self.T  # share of noise on the straight path, 1/T..1
            return 2 * (torch.log1p(-s) - torch.log(s) - np.log(self.config.snr_shift))
        return _interpolate(self._table(t.device), t)

    def _table(self, device: torch.device) -> Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]


def column(a: Tensor, x: Tensor) -> Tensor:
    """One number per sample, [B], shaped and typed to scale x [B, ...]."""
    return a.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def _log_snr_table(config: ScheduleConfig) -> Tensor:
    alphas_cumprod = np.cumprod(1 - BETAS[config.kind](config))
    if config.zero_terminal_snr:  # Lin et al. 2023, alg. 1: shift the last alpha to 0, stretch so that the first stays
        alphas = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    with np.errstate(divide="ignore"):
        log_snr = np.log(alphas_cumprod) - np.log1p(-alphas_cumprod) - 2 * np.log(config.snr_shift)
    return torch.from_numpy(log_snr)


def _interpolate(table: Tensor, t: Tensor) -> Tensor:
    """The table at fractional indices; towards a last entry of -inf, alpha / sigma falls evenly to 0."""
    below = t.floor().long().clamp(0, len(table) - 1)
    above = (below + 1).clamp(max=len(table) - 1)
    share = t - below
    start, end = table[below], table[above]
    falling = torch.where(torch.isinf(end), 2 * torch.log1p(-share), share * (end - start))
    return torch.where(share == 0, start, start + falling)


def _precision(value: Tensor, t: Tensor) -> Tensor:
    return value.to(t.dtype if t.is_floating_point() else torch.float32)


# ---- which timesteps a sampler visits


def _falling(steps: int) -> Tensor:
    return torch.linspace(1, 0, steps, dtype=torch.float64)  # one step: 1


def _between(share: Tensor, schedule: Schedule, rho: float) -> Tensor:
    """The t at which (sigma / alpha)^(1/rho), or its logarithm for rho 0, has fallen to `share` of its range."""
    every = torch.arange(schedule.T, dtype=torch.float64)
    noise = -schedule.log_snr(every) / 2  # log(sigma / alpha), rising
    most = noise.isfinite().sum()  # without signal it is infinite: the range then ends one timestep earlier
    scale = torch.exp(noise[:most] / rho) if rho else noise[:most]
    wanted = scale[0] + share * (scale[-1] - scale[0])
    ts = torch.from_numpy(np.interp(wanted.numpy(), scale.numpy(), every[:most].numpy()))
    return torch.cat([every[-1:], ts[1:]])


SPACINGS = {
    "trailing": lambda steps, s: s.T - 1 - torch.arange(steps, dtype=torch.float64) * s.T / steps,
    "linspace": lambda steps, s: (s.T - 1) * _falling(steps),
    "quadratic": lambda steps, s: (s.T - 1) * _falling(steps) ** 2,
    "log_snr": lambda steps, s: _between(_falling(steps), s, 0.0),
    "karras": lambda steps, s: _between(_falling(steps), s, 7.0),
    "uniform": lambda steps, s: torch.arange(0, s.T, s.T // steps, dtype=torch.float64).flip(0) + 1,
}


def timesteps(steps: int, schedule: Schedule, spacing: str = "trailing") -> Tensor:
    """Timesteps from the noisiest down: float64 [steps], on the CPU.

    trailing begins at T-1 and falls in equal strides (Lin et al. 2023); linspace also ends at 0; quadratic does so in
    ever shorter strides, where few steps err least (Song et al. 2021, app. D.2); log_snr takes equal strides in
    log-SNR (Lu et al. 2022); karras in the seventh root of sigma / alpha (Karras et al. 2022, eq. 5); uniform is the
    grid of the original release, one above the multiples of T // steps, so that it may hold more steps than asked for.
    """
    if spacing not in SPACINGS:
        raise UserError(f"spacing is {spacing!r}; it can be {', '.join(SPACINGS)}")
    if not 1 <= steps <= schedule.T:
        raise UserError(f"steps is {steps}; it can be 1 to {schedule.T}, the timesteps of the schedule")
    with torch.device("cpu"):
        ts = SPACINGS[spacing](steps, schedule)
    if ts[0] > schedule.T - 1:
        raise UserError(
            f"steps is {steps}; the original's uniform grid then leaves 0..{schedule.T - 1}; use spacing=trailing"
        )
    return ts


def shifted(ts: Tensor, schedule: Schedule, shift: float) -> Tensor:
    """The timesteps ts moved towards the noise, as Esser et al. 2024 (eq. 23) do for larger pictures: float64 [steps].

    A picture of more pixels needs more noise to be undone as far (the paper's app. D.1 shows it through Var(z)): a
    share of noise s = sigma / (alpha + sigma), relative to that of the last timestep, becomes
    shift·s / (1 + (shift - 1)·s). 1 changes nothing; sqrt(pixels / training pixels) keeps a constant image equally
    uncertain.
    """
    if shift <= 0:
        raise UserError(f"shift is {shift}; it must be above 0 (1 changes nothing)")
    if shift == 1:
        return ts
    with torch.device("cpu"):
        every = torch.arange(schedule.T, dtype=torch.float64)
    share = lambda t: schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))  # noqa: E731
    known, most = share(every), share(every)[-1]
    s = share(ts) / most
    wanted = most * shift * s / (1 + (shift - 1) * s)
    moved = torch.from_numpy(np.interp(wanted.numpy(), known.numpy(), every.numpy()))
    if (moved.diff() > -1e-3).any():  # a thousandth of a timestep is none
        raise UserError(f"shift is {shift}, which leaves no room for {len(ts)} steps; take one nearer to 1")
    return moved
