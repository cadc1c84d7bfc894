"""The PatchGAN critic of stage one (Isola et al. 2017), its losses, and when it learns and weighs."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.config import UserError

GROUPS = 8  # of norm="group": 16 channels or more in each at the default width


@dataclass(frozen=True)
class DiscriminatorConfig:
    channels: int = 64  # width of the first layer; doubled per layer, up to eightfold
    layers: int = 3  # strided layers after which a patch is judged; 3 sees patches of 70 pixels, 2 of 34
    norm: str = "group"  # group, or batch as in the paper (its statistics depend on what else is in the batch)
    loss: str = "hinge"  # hinge or vanilla
    weight: float = 0.5  # of the adversarial term, on top of the adaptive weight; 0: no discriminator
    start: float = 50001  # when the autoencoder begins to feel it: a step, or below 1 a fraction of the training
    train_from: float | None = None  # when the discriminator begins to learn, likewise; none: at 0.9 of start
    ramp: float = 0.05  # how long its weight then rises until it is full, likewise; 0: at once


class Discriminator(nn.Module):
    """A score per patch: [B, 3, H, W] -> logits [B, 1, H', W'], high where the patch looks real."""

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
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return upcast(self.main(x))


def _initialise(module: nn.Module) -> None:
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


LOSSES = {"hinge": hinge, "vanilla": vanilla}  # what the discriminator minimises, of its logits


def generator_loss(fake: Tensor) -> Tensor:
    """-E D(y): what the autoencoder minimises, for either loss."""
    return -fake.mean()


# ---- when


def plan(config: DiscriminatorConfig, steps: int) -> tuple[float, float, float]:
    """train_from, start and ramp in steps of a training of `steps`."""
    values = (config.start if config.train_from is None else config.train_from, config.start, config.ramp)
    train_from, start, ramp = (value if value >= 1 else value * steps for value in values)
    if config.train_from is None:
        train_from = 0.9 * start
    if train_from > start:
        raise UserError(
            f"discriminator.train_from is step {train_from:g} and discriminator.start step {start:g}; "
            "a discriminator must not weigh before it learns: lower train_from"
        )
    return train_from, start, ramp


def learns_at(config: DiscriminatorConfig, step: int, steps: int) -> bool:
    """Whether the discriminator is trained at `step`, counted from 0."""
    return config.weight > 0 and step >= plan(config, steps)[0]


def weight_at(config: DiscriminatorConfig, step: int, steps: int) -> float:
    """What the adversarial term weighs at `step`, beside the adaptive weight: 0, then a linear rise, then `weight`."""
    _, start, ramp = plan(config, steps)
    if step < start:
        return 0.0
    return config.weight * min(1.0, (step - start + 1) / max(ramp, 1))
