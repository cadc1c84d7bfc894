"""Stage one's loss (paper, appendix G): reconstruction, adversarial and bottleneck terms, in one backward pass."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, autograd, nn

from latentdiff.autoencoder.autoencoder import Reconstruction
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.autoencoder.perceptual import LPIPSConfig, MultiScaleConfig

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LossConfig:
    l1: float = 1.0  # weight of the absolute error
    l2: float = 0.0  # weight of the squared error
    perceptual: LPIPSConfig | MultiScaleConfig | None = (
        LPIPSConfig()
    )  # LPIPS; MultiScale needs no trained weights; none
    equivariance: float = 0.0  # share of steps in which latent and picture are turned and shrunk alike (EQ-VAE)


def reconstruction_loss(
    config: LossConfig, x: Tensor, y: Tensor, perceptual: nn.Module | None, reduction: str
) -> dict[str, Tensor]:
    """x, y [B, 3, H, W] -> "nll", and its unweighted parts as means over all values.

    reduction: "sum" over a picture, which the KL's weight supposes, or "mean", which the codebook's does; the
    perceptual distance counts once per value, as in the original release. Both are means over the batch.
    """
    error = upcast(y) - upcast(x)
    terms = {"l1": error.abs().mean(), "l2": error.square().mean()}
    total = config.l1 * terms["l1"] + config.l2 * terms["l2"]
    if perceptual is not None:
        terms["perceptual"] = perceptual(y, x).mean()
        total = total + config.perceptual.weight * terms["perceptual"]
    return terms | {"nll": total * x[0].numel() if reduction == "sum" else total}


def adaptive_weight(a: Tensor, b: Tensor, h: Tensor, last_layer: nn.Conv2d, reduce: Reduce | None = None) -> Tensor:
    """‖∂nll/∂W‖ / (‖∂g/∂W‖ + 1e-4), between 0 and 1e4 (Esser et al. 2021, eq. 7); W is the last convolution's weight.

    a, b [B, 3, H, W]: gradients of nll and g with respect to y. h: what the last convolution read. reduce: the mean of
    a tensor over all ranks, so that every rank finds the same weight.
    """
    shape, padding, h = last_layer.weight.shape, last_layer.padding, upcast(h.detach())
    gradients = torch.stack([nn.grad.conv2d_weight(h, shape, upcast(u), padding=padding) for u in (a, b)])
    if reduce is not None:
        gradients = reduce(gradients)
    nll, g = torch.linalg.vector_norm(gradients.flatten(1), dim=1)
    return (nll / (g + 1e-4)).clamp(0, 1e4)


def backward(
    output: Reconstruction,
    bottleneck: Tensor,
    y: Tensor,
    nll: Tensor,
    g: Tensor | None,
    weight: float,
    last_layer: nn.Conv2d,
    scale: Tensor | float = 1.0,
    reduce: Reduce | None = None,
) -> Tensor | None:
    """Leave the gradients of nll + bottleneck + weight·adaptive·g, walking the decoder once; returns adaptive.

    output, bottleneck: what the autoencoder gave, and its bottleneck's loss. y: `output.y.detach().requires_grad_()`,
    of which nll and g (None: no discriminator weighs) were computed. scale: a GradScaler's, or 1 / accumulated batches.

    The losses are differentiated down to y, the last layer's two gradients follow by one convolution each, and the
    combined gradient then takes the one way through the networks: equal to the original release, which needs the
    graph three times.
    """
    with torch.autocast(y.device.type, enabled=False):  # the backward pass follows the types of the forward pass
        a, adaptive = autograd.grad(nll * scale, y)[0], None
        if g is not None:
            b = autograd.grad(g * scale, y)[0]
            adaptive = adaptive_weight(a / scale, b / scale, output.h, last_layer, reduce)
            a = a + weight * adaptive * b
        roots = [(output.y, a)]
        if bottleneck.requires_grad:
            roots.append((bottleneck, torch.ones_like(bottleneck) * scale))
        autograd.backward(*zip(*roots))
    return adaptive
