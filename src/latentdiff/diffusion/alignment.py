"""A middle block that learns to see as a frozen feature network does (REPA, Yu et al. 2025; for U-Nets, Tian et al.
2025): one more term in the loss, nothing more when drawing."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.layers import to_tokens


@dataclass(frozen=True)
class AlignConfig:
    path: str = ""  # a TorchScript file: pictures [B, 3, H, W] in [-1, 1] -> features [B, dim, h, w] of any size
    dim: int = 768  # channels of its features
    weight: float = 0.5  # of the term beside the loss


class Alignment(nn.Module):
    """h [B, C, h, w] of the U-Net's middle, features [B, dim, h', w'] -> one minus their mean cosine, [B]."""

    def __init__(self, config: AlignConfig, channels: int) -> None:
        super().__init__()
        self.weight = config.weight
        self.project = nn.Sequential(nn.Linear(channels, config.dim), nn.SiLU(), nn.Linear(config.dim, config.dim))

    def forward(self, h: Tensor, features: Tensor) -> Tensor:
        target = F.adaptive_avg_pool2d(features, h.shape[2:]).to(h.dtype)
        cosine = F.cosine_similarity(self.project(to_tokens(h)).float(), to_tokens(target).float(), dim=-1)
        return self.weight * (1 - cosine.mean(1))


def open_teacher(config: AlignConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """The frozen network of a file, pictures -> features; a file that is none, or gives others, is refused."""

    @torch.no_grad()
    def teacher(x: Tensor) -> Tensor:
        return network(x)

    try:
        network = torch.jit.load(config.path, map_location=device).eval()
        shape = tuple(teacher(torch.zeros(1, 3, 64, 64, device=device)).shape)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"align.path is {config.path}: no TorchScript network of pictures ({error})") from error
    if len(shape) != 4 or shape[1] != config.dim:
        raise UserError(f"align.dim is {config.dim}; {config.path} gives features of shape {shape}, not [B, dim, h, w]")
    return teacher
