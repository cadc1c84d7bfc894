"""Guidance: functions that make one denoise(x, t) -> (x0, eps) out of another. x0 and eps move together, so that
x = alpha·x0 + sigma·eps stays true."""

from collections.abc import Callable

import torch
from torch import Tensor

from latentdiff.diffusion.samplers import Denoise
from latentdiff.diffusion.schedule import Schedule, column

Guider = Callable[[Tensor], Tensor]  # x0 [B, ...] -> loss [B]
Both = Callable[[Tensor, Tensor], tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]


def classifier_free(denoise: Denoise, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """Away from no condition (Ho & Salimans 2021, eq. 6, with scale = w + 1): see `away_from`.

    `denoise` sees a batch of 2B, first without and then with the condition.
    """

    def both(x: Tensor, t: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        x0, eps = denoise(torch.cat([x, x]), torch.cat([t, t]))
        return tuple(zip(x0.chunk(2), eps.chunk(2)))

    return away_from(both, scale, rescale, schedule)


def autoguidance(good: Denoise, bad: Denoise, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """Away from a worse model of the same data: an earlier checkpoint or a smaller one (Karras et al. 2024, eq. 3)."""
    return away_from(lambda x, t: (bad(x, t), good(x, t)), scale, rescale, schedule)


def away_from(both: Both, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """bad + scale·(good - bad), where both(x, t) gives bad and good (x0, eps); scale: a number, or one each [B].

    rescale > 0 draws the contrast of x0 back towards that of the good one (Lin et al. 2023, eq. 14-16), by that share.
    """

    def guided(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        (x0_bad, eps_bad), (x0_good, eps_good) = both(x, t)
        s = column(scale.to(x), x) if isinstance(scale, Tensor) else scale
        x0, eps = x0_bad + s * (x0_good - x0_bad), eps_bad + s * (eps_good - eps_bad)
        if rescale:
            ratio = column(_contrast(x0_good) / _contrast(x0), x0)
            x0, eps = _moved(x0, eps, x0 * (1 - rescale + rescale * ratio) - x0, t, schedule)
        return x0, eps

    return guided


def within(guided: Denoise, plain: Denoise, interval: tuple[float, ...], schedule: Schedule) -> Denoise:
    """Guided where sigma / (alpha + sigma) lies in the interval, plain elsewhere (Kynkaanniemi et al. 2024).

    A sampler's t is one for all samples and known to the host: elsewhere costs half. For any other t [B] both are made.
    """
    low, high = interval
    if (low, high) == (0.0, 1.0):
        return guided

    def inside(t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        share = sigma / (alpha + sigma)
        return (low <= share) & (share <= high)

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if hasattr(t, "told"):
            return (guided if inside(torch.tensor(t.told, dtype=torch.float64)) else plain)(x, t)
        where = inside(t).view(-1, *[1] * (x.ndim - 1))
        return tuple(torch.where(where, a, b) for a, b in zip(guided(x, t), plain(x, t)))

    return denoise


def quantized(denoise: Denoise, quantise: Callable[[Tensor], Tensor]) -> Denoise:
    """x0 made of codes at every step, eps as it was (the original release's quantize_denoised, for VQ latents)."""

    def snapped(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x0, eps = denoise(x, t)
        return quantise(x0), eps

    return snapped


def image_guidance(denoise: Denoise, loss: Guider, scale: float, schedule: Schedule) -> Denoise:
    """Draw from p(x)·exp(-scale·loss(x0)), for a loss that takes x0 [B, ...] to [B] (paper, app. C, eq. 16 with the
    sign put right: the score is -eps / sigma, so eps gains what the loss grows by).

    The paper's step, a constant times grad loss(x0(x_t)), is as long for an x0 still unsure as for one that is settled,
    and overshoots. x0 has the covariance V = sigma² / alpha · dx0/dx given x_t (Tweedie), so x0 moves by -k·V·grad loss
    here, k being where scale·loss, a parabola through its values at both ends, and the distance from the model's
    guess, d·V⁻¹·d / 2, are least together. On Gaussians with one number observed that is exact.
    """

    def guided(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, eps = denoise(x, t)
            guess = x0.detach().requires_grad_()
            before = loss(guess)
            (slope,) = torch.autograd.grad(before.sum(), guess)
            (pulled,) = torch.autograd.grad(x0, x, slope)
        x0, eps, before = x0.detach(), eps.detach(), before.detach()
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        step = -torch.where(alpha > 0, sigma**2 / alpha, 0) * pulled  # without signal nothing can be steered
        fall = -(slope * step).flatten(1).sum(1)
        with torch.no_grad():
            bend = (loss(x0 + step) - before + fall).clamp(min=0)
        k = torch.where(fall > 0, scale * fall / (2 * abs(scale) * bend + fall), 0)
        return _moved(x0, eps, column(k, x) * step, t, schedule)

    return guided


def classifier_guidance(
    denoise: Denoise, log_p: Callable[[Tensor, Tensor], Tensor], scale: float, schedule: Schedule
) -> Denoise:
    """Follow p(x)·p(y | x_t)^scale: eps - scale·sigma·grad log p(y | x_t) (Dhariwal & Nichol 2021, alg. 2).

    log_p takes x_t [B, ...] and t [B] to [B]: a classifier that knows noisy x.
    """

    def guided(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x0, eps = denoise(x, t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_p(x, t).sum(), x)
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        step = torch.where(alpha > 0, scale * sigma**2 / alpha, 0) * gradient  # without signal nothing can be steered
        return _moved(x0.detach(), eps.detach(), step, t, schedule)

    return guided


def blend_known(
    denoise: Denoise, known: Tensor, mask: Tensor, noise: Callable[[], Tensor], schedule: Schedule
) -> Denoise:
    """Before each step, put the known image, noised to t, where mask [B, 1, h, w] is 1 (original release)."""

    def blended(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return denoise(mask * schedule.diffuse(known, noise(), t) + (1 - mask) * x, t)

    return blended


def _contrast(x: Tensor) -> Tensor:
    return x.flatten(1).std(dim=1)  # [B, ...] -> [B]


def _moved(x0: Tensor, eps: Tensor, by: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """x0 moved by `by`, and eps so that x stays where it is."""
    alpha, sigma = column(schedule.alpha(t), x0), column(schedule.sigma(t), x0)
    return x0 + by, eps - alpha / sigma * by
