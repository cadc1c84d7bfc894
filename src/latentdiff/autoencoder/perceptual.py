"""How different two pictures look: LPIPS (Zhang et al. 2018), and a term that needs no trained weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.config import UserError

TAPS = {  # indices in torchvision's `features` after which LPIPS compares
    "vgg16": (3, 8, 15, 22, 29),  # relu 1_2, 2_2, 3_3, 4_3, 5_3
    "squeezenet": (1, 4, 7, 9, 10, 11, 12),
}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation, for [-1, 1]


@dataclass(frozen=True)
class LPIPSConfig:
    backbone: str = "vgg16"  # vgg16, as in the paper, or squeezenet, ten times as quick
    backbone_weights: str = ""  # its ImageNet weights; empty: $LATENTDIFF_WEIGHTS, torchvision's cache, download
    heads: str = ""  # file of the LPIPS heads; empty: $LATENTDIFF_WEIGHTS, the package lpips, download
    weight: float = 1.0  # beside the pixel terms


@dataclass(frozen=True)
class MultiScaleConfig:
    scales: int = 3  # how many sizes, each half the one before, whose edges are compared
    weight: float = 1.0  # beside the pixel terms


class LPIPSDistance(nn.Module):
    """Weighted squared differences of unit-length features: two [B, 3, H, W] in [-1, 1] -> [B, 1, 1, 1].

    Its weights are buffers outside the state dict, so that nothing trains, wraps or saves them.
    """

    def __init__(self, backbone: str, weights: dict[str, Tensor], heads: list[Tensor]) -> None:
        super().__init__()
        self.taps = TAPS[backbone]
        self.features = pretrained.features(backbone)
        self.features.load_state_dict(weights, assign=True)
        self.features = self.features[: self.taps[-1] + 1]
        for module in self.features.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=False)
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.clone(), persistent=False)  # [1, C, 1, 1]
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The distance has a gradient with respect to x and none with respect to target."""
        return sum(self.levels(x, target))

    def levels(self, x: Tensor, target: Tensor) -> list[Tensor]:
        """What each tap adds, [B, 1, 1, 1] each."""
        with torch.no_grad():
            wanted = [unit(f) for f in self.maps(target)]
        heads = (getattr(self, f"head{i}") for i in range(len(self.taps)))
        squares = ((unit(f) - g).square() * head for f, g, head in zip(self.maps(x), wanted, heads))
        return [s.sum(1, keepdim=True).mean((2, 3), keepdim=True) for s in squares]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Features at the taps, [B, C_i, H_i, W_i]."""
        h, found = (x - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.taps:
                found.append(h)
        return found


class MultiScaleDistance(nn.Module):
    """Mean absolute difference of the slopes along both sides, over several sizes: [B, 3, H, W] twice -> [B, 1, 1, 1].

    No network: it asks for edges in the right place, which L1 alone leaves soft.
    """

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        difference, total = upcast(x) - upcast(target.detach()), 0.0
        for i in range(self.scales):
            if i:
                difference = F.avg_pool2d(difference, 2)
            across, down = difference.diff(dim=3), difference.diff(dim=2)
            total = total + across.abs().mean((1, 2, 3)) + down.abs().mean((1, 2, 3))
        return (total / self.scales).view(-1, 1, 1, 1)


def unit(f: Tensor) -> Tensor:
    """[B, C, H, W] with channels scaled to length one; not in a half type, where 1e-10 is nothing."""
    f = upcast(f)
    return f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10)


def build(config: LPIPSConfig | MultiScaleConfig | None) -> LPIPSDistance | MultiScaleDistance | None:
    """The distance that a recipe asks for; finds or fetches weights. UserError where they cannot be had."""
    if config is None:
        return None
    if isinstance(config, MultiScaleConfig):
        return MultiScaleDistance(config.scales)
    if config.backbone not in TAPS:
        raise UserError(f"loss.perceptual.backbone is {config.backbone!r}; it must be one of {', '.join(TAPS)}")
    weights = pretrained.backbone(config.backbone, config.backbone_weights)
    heads = pretrained.heads(config.backbone, config.heads)
    try:
        return LPIPSDistance(config.backbone, weights, heads)
    except RuntimeError as error:
        raise UserError(f"loss.perceptual: the weights do not fit {config.backbone}: {error}") from error
