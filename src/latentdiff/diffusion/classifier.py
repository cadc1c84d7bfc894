"""A classifier of noisy latents, for classifier guidance: half a U-Net (Dhariwal & Nichol 2021, sec. 4)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.diffusion.unet import UNetConfig, down_blocks, middle_block
from latentdiff.layers import timestep_embedding


class Classifier(nn.Module):
    """The U-Net's encoder and middle block, global average pooling, and a linear layer."""

    def __init__(self, config: UNetConfig, in_channels: int, classes: int) -> None:
        super().__init__()
        self.width, c_emb = config.channels, 4 * config.channels
        self.time = nn.Sequential(nn.Linear(self.width, c_emb), nn.SiLU(), nn.Linear(c_emb, c_emb))
        self.conv_in = nn.Conv2d(in_channels, config.channels, 3, padding=1)
        self.down, skips = down_blocks(config, None)
        self.middle = middle_block(config, skips[-1], None)
        self.norm_out = nn.GroupNorm(config.norm_groups, skips[-1])
        self.out = nn.Linear(skips[-1], classes)

    def forward(self, z_t: Tensor, t: Tensor) -> Tensor:
        """z_t [B, C, h, w] of any size, t [B] -> logits [B, classes]."""
        emb, cond = F.silu(self.time(timestep_embedding(t, self.width).to(z_t.dtype))), Cond()  # [B, 4·channels]
        h = self.conv_in(z_t)  # [B, channels, h, w]
        for block in [*self.down, self.middle]:
            h = block(h, emb, cond)  # [B, width, h/2^level, w/2^level]
        h = F.silu(self.norm_out(h)).mean(dim=(2, 3))  # [B, width]
        return self.out(h)  # [B, classes]

    def log_p(self, z_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """log p(label | z_t) [B], in float32 or float64."""
        logits = self(z_t, t)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.log_softmax(logits, dim=1).gather(1, label[:, None])[:, 0]  # [B]
