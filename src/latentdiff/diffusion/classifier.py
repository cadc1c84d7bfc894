"""A classifier of noisy latents, for classifier guidance: half a U-Net (Dhariwal & Nichol 2021, sec. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.diffusion.unet import Layers, UNetConfig
from latentdiff.layers import timestep_embedding


class Classifier(nn.Module):
    """z_t [B, C, h, w] of any size, t [B] -> logits [B, classes]: the way down, the middle, and a mean over places."""

    def __init__(self, config: UNetConfig, in_channels: int, classes: int) -> None:
        super().__init__()
        layers = Layers(config, None)
        self.width = width = config.channels
        self.time = nn.Sequential(nn.Linear(width, layers.c_emb), nn.SiLU(), nn.Linear(layers.c_emb, layers.c_emb))
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.down, skips = layers.down(width)
        self.middle = layers.middle(skips[-1])
        self.norm_out = nn.GroupNorm(config.norm_groups, skips[-1])
        self.out = nn.Linear(skips[-1], classes)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        emb, cond = F.silu(self.time(timestep_embedding(t, self.width).to(z_t.dtype))), Cond()
        h = self.conv_in(z_t)
        for stage in [*self.down, self.middle]:
            h = stage(h, emb, cond)
        return self.out(F.silu(self.norm_out(h)).mean(dim=(2, 3)))

    def log_p(self, z_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """log p(label | z_t) [B], in float32 at least: what guidance follows."""
        logits = self(z_t, t)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.log_softmax(logits, dim=1).gather(1, label[:, None])[:, 0]
