"""Representation alignment (REPA, Yu et al. 2025; for U-Nets, Tian et al. 2025): a training loss that aligns the
U-Net's middle block with the features of a frozen network. Sampling does not use it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.layers import to_tokens


@dataclass(frozen=True)
class AlignConfig:
    path: str = ""  # TorchScript file: images [B, 3, H, W] in [-1, 1] -> features [B, dim, h, w] of any h, w
    dim: int = 768  # channels of the features
    weight: float = 0.5  # of the alignment loss


class Alignment(nn.Module):
    """weight·(1 - the mean cosine similarity of projected U-Net features and target features)."""

    def __init__(self, config: AlignConfig, channels: int) -> None:
        super().__init__()
        self.weight = config.weight
        self.project = nn.Sequential(nn.Linear(channels, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        """U-Net features h [B, C, h, w], target features [B, dim, h', w'] -> losses [B]."""
        target = F.adaptive_avg_pool2d(features, h.shape[2:]).to(h.dtype)  # [B, dim, h, w]
        projected = self.project(to_tokens(h))  # [B, h·w, dim]
        cosine = F.cosine_similarity(projected.float(), to_tokens(target).float(), dim=-1)  # [B, h·w]
        return self.weight * (1 - cosine.mean(1))  # [B]


def open_feature_encoder(config: AlignConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Load the frozen network, images -> features; a file that is not one of the configured width is refused."""

    @torch.no_grad()
    def feature_encoder(x: Tensor) -> Tensor:
        return network(x)

    try:
        network = torch.jit.load(config.path, map_location=device).eval()
        shape = tuple(feature_encoder(torch.zeros(1, 3, 64, 64, device=device)).shape)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"align.path is {config.path}; it must be a TorchScript network of images ({error})") from error
    if len(shape) != 4 or shape[1] != config.dim:
        raise UserError(
            f"align.dim is {config.dim}; {config.path} returns features of shape {shape}, not [B, dim, h, w]"
        )
    return feature_encoder
