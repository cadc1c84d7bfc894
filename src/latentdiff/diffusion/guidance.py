"""Guidance: functions that wrap a denoiser, denoise(x, t) -> (x0, eps), into another.

They change x0 and eps together, so that x = alpha·x0 + sigma·eps stays true.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from latentdiff.diffusion.samplers import Denoise, broadcast_t
from latentdiff.diffusion.schedule import Schedule, append_dims

X0Eps = tuple[Tensor, Tensor]
DenoiseBoth = Callable[[Tensor, float | Tensor], tuple[X0Eps, X0Eps]]
Guider = Callable[[Tensor], Tensor]  # x0 [B, ...] -> loss [B]


def classifier_free(denoise: Denoise, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2021, eq. 6, with scale = w + 1); see `extrapolate`.

    `denoise` is called with a batch of 2B: the first half unconditional, the second half conditional.
    """

    def uncond_and_cond(x: Tensor, t: float | Tensor) -> tuple[X0Eps, X0Eps]:
        x0, eps = denoise(torch.cat([x, x]), torch.cat([t, t]) if isinstance(t, Tensor) else t)
        return tuple(zip(x0.chunk(2), eps.chunk(2)))

    return extrapolate(uncond_and_cond, scale, rescale, schedule)


def autoguidance(main: Denoise, weak: Denoise, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """Guidance away from a weaker model, smaller or an earlier checkpoint (Karras et al. 2024, eq. 3)."""
    return extrapolate(lambda x, t: (weak(x, t), main(x, t)), scale, rescale, schedule)


def extrapolate(weak_and_main: DenoiseBoth, scale: float | Tensor, rescale: float, schedule: Schedule) -> Denoise:
    """The denoiser weak + scale·(main - weak), with one scale or one per sample [B].

    rescale: 0 to 1; how far the standard deviation of x0 is rescaled to that of main (Lin et al. 2023, eq. 14-16).
    """

    def guided(x: Tensor, t: float | Tensor) -> X0Eps:
        (x0_weak, eps_weak), (x0_main, eps_main) = weak_and_main(x, t)
        s = append_dims(scale.to(x), x) if isinstance(scale, Tensor) else scale
        x0, eps = x0_weak + s * (x0_main - x0_weak), eps_weak + s * (eps_main - eps_weak)
        if rescale:
            ratio = append_dims(x0_main.flatten(1).std(dim=1) / x0.flatten(1).std(dim=1), x0)  # [B, 1, ...]
            x0, eps = _shift_x0(x0, eps, x0 * (1 - rescale + rescale * ratio) - x0, *_alpha_sigma(schedule, t, x))
        return x0, eps

    return guided


def limit_interval(guided: Denoise, plain: Denoise, interval: tuple[float, ...], schedule: Schedule) -> Denoise:
    """`guided` where sigma / (alpha + sigma) lies in the interval, else `plain` (Kynkaanniemi et al. 2024).

    For a float t only one of them is called; for t [B] both, and each sample takes its own.
    """
    low, high = interval
    if (low, high) == (0.0, 1.0):
        return guided

    def in_interval(t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noise_fraction = sigma / (alpha + sigma)
        return (low <= noise_fraction) & (noise_fraction <= high)

    def denoise(x: Tensor, t: float | Tensor) -> X0Eps:
        if isinstance(t, float):
            return (guided if in_interval(torch.tensor(t, dtype=torch.float64)) else plain)(x, t)
        inside = in_interval(t).view(-1, *[1] * (x.ndim - 1))  # [B, 1, ...]
        return tuple(torch.where(inside, a, b) for a, b in zip(guided(x, t), plain(x, t)))

    return denoise


def quantize_x0(denoise: Denoise, quantize: Callable[[Tensor], Tensor]) -> Denoise:
    """x0 quantized to the codebook, eps unchanged (the original release's quantize_denoised, for VQ latents)."""

    def quantized(x: Tensor, t: float | Tensor) -> X0Eps:
        x0, eps = denoise(x, t)
        return quantize(x0), eps

    return quantized


def image_guidance(denoise: Denoise, loss: Guider, scale: float, schedule: Schedule) -> Denoise:
    """Sample from p(x)·exp(-scale·loss(x0)) (paper, app. C, eq. 16, with the opposite sign: the score is -eps / sigma).

    The paper's step, a constant times grad loss(x0(x_t)), ignores how uncertain x0 is, and overshoots. Given x_t, x0
    has the covariance V = sigma² / alpha · dx0/dx (Tweedie), so here x0 moves by d = -k·V·grad loss. k minimises
    scale·loss + d·V⁻¹·d / 2, with the loss as the parabola through its values at both ends and its initial slope.
    This is exact for Gaussian data with one linear measurement.
    """

    def guided(x: Tensor, t: float | Tensor) -> X0Eps:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            x0, eps = denoise(x, t)
            x0_leaf = x0.detach().requires_grad_()
            loss_before = loss(x0_leaf)
            (loss_grad,) = torch.autograd.grad(loss_before.sum(), x0_leaf)
            (x_grad,) = torch.autograd.grad(x0, x, loss_grad)
        x0, eps, loss_before = x0.detach(), eps.detach(), loss_before.detach()
        alpha, sigma = _alpha_sigma(schedule, t, x)
        step = -torch.where(alpha > 0, sigma**2 / alpha, 0) * x_grad  # no guidance where there is no signal
        decrease = -(loss_grad * step).flatten(1).sum(1)  # [B], of the loss to first order
        with torch.no_grad():
            curvature = (loss(x0 + step) - loss_before + decrease).clamp(min=0)
        k = torch.where(decrease > 0, scale * decrease / (2 * abs(scale) * curvature + decrease), 0)
        return _shift_x0(x0, eps, append_dims(k, x) * step, alpha, sigma)

    return guided


def squared_error(x: Tensor, target: Tensor) -> Tensor:
    """|x - target|² / 2 [B], which is -log N(target; x, 1) up to a constant."""
    return (x - target).square().flatten(1).sum(1) / 2


def image_similarity_loss(
    target: Tensor, decode: Callable[[Tensor], Tensor], distance: Callable[[Tensor, Tensor], Tensor] = squared_error
) -> Guider:
    """A loss for image_guidance: the distance of the decoded image, resized to the target [B, 3, h, w], to the target.

    With small targets an unconditional model does super-resolution. distance: squared_error or an LPIPSDistance.
    """

    def loss(x0: Tensor) -> Tensor:
        x = F.interpolate(decode(x0), size=target.shape[2:], mode="bicubic", antialias=True)  # [B, 3, h, w]
        return distance(x, target).flatten()  # [B]

    return loss


def classifier_guidance(
    denoise: Denoise, log_p: Callable[[Tensor, Tensor], Tensor], scale: float, schedule: Schedule
) -> Denoise:
    """Sample from p(x)·p(y | x_t)^scale: eps - scale·sigma·grad log p(y | x_t) (Dhariwal & Nichol 2021, alg. 2).

    log_p: x_t [B, ...] and t [B] -> [B], by a classifier trained on noisy x.
    """

    def guided(x: Tensor, t: float | Tensor) -> X0Eps:
        x0, eps = denoise(x, t)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (grad,) = torch.autograd.grad(log_p(x, broadcast_t(t, x)).sum(), x)
        alpha, sigma = _alpha_sigma(schedule, t, x)
        step = torch.where(alpha > 0, scale * sigma**2 / alpha, 0) * grad  # no guidance where there is no signal
        return _shift_x0(x0.detach(), eps.detach(), step, alpha, sigma)

    return guided


def blend_known(
    denoise: Denoise, known: Tensor, mask: Tensor, noise: Callable[[], Tensor], schedule: Schedule
) -> Denoise:
    """Replace x by the known latent, noised to t, where mask [B, 1, h, w] is 1 (original release)."""

    def blended(x: Tensor, t: float | Tensor) -> X0Eps:
        return denoise(mask * schedule.diffuse(known, noise(), broadcast_t(t, x)) + (1 - mask) * x, t)

    return blended


def _alpha_sigma(schedule: Schedule, t: float | Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    t = broadcast_t(t, x)
    return append_dims(schedule.alpha(t), x), append_dims(schedule.sigma(t), x)  # [B, 1, ...] each


def _shift_x0(x0: Tensor, eps: Tensor, delta: Tensor, alpha: Tensor, sigma: Tensor) -> X0Eps:
    """x0 + delta, and the eps for which x stays unchanged."""
    return x0 + delta, eps - alpha / sigma * delta
