"""The PatchGAN discriminator of stage one (Isola et al. 2017), its losses, and its schedule."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.config import UserError

GROUPS = 8  # of norm="group": at least 16 channels each at the default width


@dataclass(frozen=True)
class DiscriminatorConfig:
    channels: int = 64  # width of the first layer; doubled per layer, up to eightfold
    layers: int = 3  # strided layers; 3 have a receptive field of 70 pixels (the patch), 2 of 34
    norm: str = "group"  # group, or batch as in the paper (each output then depends on the whole batch)
    loss: str = "hinge"  # hinge or vanilla
    weight: float = 0.5  # of the adversarial loss, multiplied by the adaptive weight; 0: no discriminator
    start: float = 50001  # when the adversarial loss starts: a step, or below 1 a fraction of the training
    train_from: float | None = None  # when training of the discriminator starts, likewise; none: 0.9 of start
    ramp: float = 0.05  # duration of the linear increase of the weight from start on, likewise; 0: at once


class Discriminator(nn.Module):
    """One logit per patch, high for real patches: [B, 3, H, W] -> [B, 1, H', W']."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        if config.norm not in NORMS or config.loss not in LOSSES:
            raise UserError(
                f"discriminator.norm is {config.norm!r} and discriminator.loss {config.loss!r}; "
                f"they must be one of {', '.join(NORMS)} and one of {', '.join(LOSSES)}"
            )
        widths = [config.channels * min(2**i, 8) for i in range(config.layers + 1)]
        layers = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for i, (c_in, c_out) in enumerate(zip(widths, widths[1:]), start=1):
            stride = 2 if i < config.layers else 1
            layers.append(nn.Conv2d(c_in, c_out, 4, stride=stride, padding=1, bias=False))
            layers += [NORMS[config.norm](c_out), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return upcast(self.main(x))  # [B, 1, H', W']


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, (nn.GroupNorm, nn.BatchNorm2d)):
        nn.init.normal_(module.weight, 1.0, 0.02)


NORMS = {"group": lambda c: nn.GroupNorm(math.gcd(GROUPS, c), c), "batch": nn.BatchNorm2d}


def hinge(real: Tensor, fake: Tensor) -> Tensor:
    """(E relu(1 - D(x)) + E relu(1 + D(y))) / 2 (Lim & Ye 2017)."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def vanilla(real: Tensor, fake: Tensor) -> Tensor:
    """(E softplus(-D(x)) + E softplus(D(y))) / 2 (Goodfellow et al. 2014)."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(fake).mean())


LOSSES = {"hinge": hinge, "vanilla": vanilla}  # (real logits, fake logits) -> loss of the discriminator


def generator_loss(fake: Tensor) -> Tensor:
    """-E D(y): the adversarial loss of the autoencoder, for either loss of the discriminator."""
    return -fake.mean()


def schedule_steps(config: DiscriminatorConfig, steps: int) -> tuple[float, float, float]:
    """train_from, start and ramp as numbers of steps, in a training of `steps`."""
    in_steps = lambda value: value if value >= 1 else value * steps  # noqa: E731
    start, ramp = in_steps(config.start), in_steps(config.ramp)
    train_from = 0.9 * start if config.train_from is None else in_steps(config.train_from)
    if train_from > start:
        raise UserError(
            f"discriminator.train_from is step {train_from:g}; it must not be after discriminator.start, "
            f"step {start:g}, because the adversarial loss needs a trained discriminator; lower train_from"
        )
    return train_from, start, ramp
