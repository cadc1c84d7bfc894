"""The loss of stage one (paper, appendix G): reconstruction, adversarial and bottleneck terms."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, autograd, nn

from latentdiff.autoencoder.autoencoder import Reconstruction
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.autoencoder.perceptual import LPIPSConfig, MultiScaleConfig

AllReduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossConfig:
    l1: float = 1.0  # weight of the absolute error
    l2: float = 0.0  # weight of the squared error
    perceptual: LPIPSConfig | MultiScaleConfig | None = LPIPSConfig()  # LPIPS, MultiScale (no trained weights) or none
    equivariance: float = 0.0  # fraction of the steps that rotate and downscale latent and image alike (EQ-VAE)


def reconstruction_loss(
    config: LossConfig, x: Tensor, y: Tensor, perceptual: nn.Module | None, reduction: str
) -> dict[str, Tensor]:
    """The negative log-likelihood "nll" of stage one, and its unweighted terms as means over all values.

    Args:
        x, y: images and their reconstructions [B, 3, H, W] in [-1, 1].
        perceptual: module (y, x) -> distance [B, 1, 1, 1]; it is added to every value, as in the original release.
        reduction: of "nll": "sum" over the values of an image (for KL) or "mean" (for VQ); the mean over the batch.
    """
    error = upcast(y) - upcast(x)
    terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
    nll = config.l1 * terms["l1"] + config.l2 * terms["l2"]
    if perceptual is not None:
        terms["perceptual"] = perceptual(y, x).mean()
        nll = nll + config.perceptual.weight * terms["perceptual"]
    return terms | {"nll": nll * x[0].numel() if reduction == "sum" else nll}


def adaptive_weight(
    nll_grad: Tensor, g_grad: Tensor, h: Tensor, last_layer: nn.Conv2d, all_reduce_mean: AllReduce | None = None
) -> Tensor:
    """‖∂nll/∂W‖ / (‖∂g/∂W‖ + 1e-4), clamped to [0, 1e4] (Esser et al. 2021, eq. 7); W is the weight of last_layer.

    nll_grad, g_grad: gradients with respect to y [B, 3, H, W]. h: the input of last_layer [B, C, H, W].
    all_reduce_mean: averages the gradients of W over the ranks, so that all ranks use the same weight.
    """
    shape, padding, h = last_layer.weight.shape, last_layer.padding, upcast(h.detach())
    grads = torch.stack([nn.grad.conv2d_weight(h, shape, upcast(u), padding=padding) for u in (nll_grad, g_grad)])
    if all_reduce_mean is not None:
        grads = all_reduce_mean(grads)  # [2, 3, C, 3, 3]
    nll_norm, g_norm = torch.linalg.vector_norm(grads.flatten(1), dim=1)
    return (nll_norm / (g_norm + 1e-4)).clamp(0, 1e4)


def backward(
    output: Reconstruction, bottleneck_loss: Tensor, y: Tensor, nll_loss: Tensor, g_loss: Tensor | None,
    disc_weight: Tensor | float | None, last_layer: nn.Conv2d, grad_scale: Tensor | float = 1.0,
    all_reduce_mean: AllReduce | None = None,
) -> Tensor | None:  # fmt: skip
    """Backward of nll_loss + bottleneck_loss + disc_weight · d_weight · g_loss, in one pass through the decoder.

    nll_loss and g_loss are differentiated down to y; one convolution each gives the two gradients of the last layer,
    hence d_weight, and the combined gradient of y is propagated. The original release, with equal gradients, runs
    backward three times.

    Args:
        y: output.y.detach().requires_grad_(), from which nll_loss and g_loss (None: no discriminator) were computed.
        grad_scale: factor of all gradients, the scale of a GradScaler / grad_accum_steps.

    Returns: d_weight, the adaptive weight; None without g_loss.
    """
    with torch.autocast(y.device.type, enabled=False):  # backward uses the dtypes of forward
        y_grad, d_weight = autograd.grad(nll_loss * grad_scale, y)[0], None
        if g_loss is not None:
            g_grad = autograd.grad(g_loss * grad_scale, y)[0]
            d_weight = adaptive_weight(y_grad / grad_scale, g_grad / grad_scale, output.h, last_layer, all_reduce_mean)
            y_grad = y_grad + disc_weight * d_weight * g_grad
        roots = [(output.y, y_grad)]
        if bottleneck_loss.requires_grad:
            roots.append((bottleneck_loss, torch.ones_like(bottleneck_loss) * grad_scale))
        autograd.backward(*zip(*roots))
    return d_weight
