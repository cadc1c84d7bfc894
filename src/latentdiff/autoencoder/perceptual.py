"""Perceptual distances of images: LPIPS (Zhang et al. 2018), and one that needs no trained weights."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.config import UserError

LPIPS_LAYERS = {  # indices in torchvision's `features` of the layers that LPIPS compares
    "vgg16": (3, 8, 15, 22, 29),  # relu 1_2, 2_2, 3_3, 4_3, 5_3
    "squeezenet": (1, 4, 7, 9, 10, 11, 12),
}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and std, for values in [-1, 1]


@dataclass(frozen=True)
class LPIPSConfig:
    backbone: str = "vgg16"  # vgg16, as in the paper, or squeezenet, ten times as fast
    backbone_weights: str = ""  # its ImageNet weights; empty: $LATENTDIFF_WEIGHTS, torchvision's cache, download
    heads: str = ""  # file of the LPIPS heads; empty: $LATENTDIFF_WEIGHTS, the package lpips, download
    weight: float = 1.0  # in the sum with the pixel terms


@dataclass(frozen=True)
class MultiScaleConfig:
    scales: int = 3  # number of resolutions whose edges are compared, each half the previous one
    weight: float = 1.0  # in the sum with the pixel terms


class LPIPSDistance(nn.Module):
    """LPIPS of two batches [B, 3, H, W] in [-1, 1]: [B, 1, 1, 1]; the weights are buffers that are not saved."""

    def __init__(self, backbone: str, weights: dict[str, Tensor], heads: list[Tensor]) -> None:
        super().__init__()
        self.layers = LPIPS_LAYERS[backbone]
        self.features = pretrained.features(backbone)
        self.features.load_state_dict(weights, assign=True)
        self.features = self.features[: self.layers[-1] + 1]
        for module in self.features.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=False)
        for i, head in enumerate(heads):
            self.register_buffer(f"head{i}", head.clone(), persistent=False)  # [1, C, 1, 1]
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        """The distance, with a gradient for x and none for target."""
        return sum(self.layer_distances(x, target))  # [B, 1, 1, 1]

    def layer_distances(self, x: Tensor, target: Tensor) -> list[Tensor]:
        """The distance in each layer, [B, 1, 1, 1] each."""
        with torch.no_grad():
            target_maps = [unit_normalize(f) for f in self.feature_maps(target)]
        heads = (getattr(self, f"head{i}") for i in range(len(self.layers)))
        maps = zip(self.feature_maps(x), target_maps, heads)
        squares = ((unit_normalize(f) - g).square() * head for f, g, head in maps)  # [B, C_i, H_i, W_i] each
        return [s.sum(1, keepdim=True).mean((2, 3), keepdim=True) for s in squares]

    def feature_maps(self, x: Tensor) -> list[Tensor]:
        """Outputs of the compared layers, [B, C_i, H_i, W_i] each."""
        h, maps = (x - self.shift) / self.scale, []
        for i, layer in enumerate(self.features):
            h = layer(h)
            if i in self.layers:
                maps.append(h)
        return maps


class MultiScaleDistance(nn.Module):
    """Mean absolute difference of image gradients at several resolutions, which sharpens edges: as LPIPSDistance."""

    def __init__(self, scales: int) -> None:
        super().__init__()
        self.scales = scales

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        difference, total = upcast(x) - upcast(target.detach()), 0.0
        for i in range(self.scales):
            if i:
                difference = F.avg_pool2d(difference, 2)  # [B, 3, H / 2^i, W / 2^i]
            dx, dy = difference.diff(dim=3), difference.diff(dim=2)
            total = total + dx.abs().mean((1, 2, 3)) + dy.abs().mean((1, 2, 3))  # [B]
        return (total / self.scales).view(-1, 1, 1, 1)


def unit_normalize(f: Tensor) -> Tensor:
    """Normalize the channel vectors of f [B, C, H, W] to length 1, in float32, because 1e-10 underflows in float16."""
    f = upcast(f)
    return f / (torch.linalg.vector_norm(f, dim=1, keepdim=True) + 1e-10)


def build(config: LPIPSConfig | MultiScaleConfig | None) -> LPIPSDistance | MultiScaleDistance | None:
    """Build the distance of a recipe; LPIPS finds or downloads its weights, or raises UserError."""
    if config is None:
        return None
    if isinstance(config, MultiScaleConfig):
        return MultiScaleDistance(config.scales)
    if config.backbone not in LPIPS_LAYERS:
        raise UserError(f"loss.perceptual.backbone is {config.backbone!r}; it must be one of {', '.join(LPIPS_LAYERS)}")
    weights = pretrained.backbone_weights(config.backbone, config.backbone_weights)
    heads = pretrained.lpips_heads(config.backbone, config.heads)
    try:
        return LPIPSDistance(config.backbone, weights, heads)
    except RuntimeError as error:
        raise UserError(f"loss.perceptual: the weights do not fit {config.backbone}: {error}") from error
