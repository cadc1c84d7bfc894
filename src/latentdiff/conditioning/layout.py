"""A layout, boxes with classes, as a context (paper, sec. 4.3.1): a transformer over three tokens per box.

The tokens are those of the original's data (taming-transformers, with 8192 of them): a box is its class, its top left
and its bottom right corner; a corner is a cell of the 90 x 90 grid over the picture, counted row by row; where there is
no box stands the last token.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.text import Block
from latentdiff.config import UserError
from latentdiff.layers import sincos_pos_embed_2d


@dataclass(frozen=True)
class LayoutConfig:
    classes: int = 601  # of boxes, numbered 0 to classes - 1
    objects: int = 30  # boxes of a picture; of more, the largest are kept
    dim: int = 512  # width of the transformer and of the context that it gives
    depth: int = 16  # transformer blocks
    heads: int = 8  # of every attention
    head_dim: int = 64  # width of a head; heads x head_dim need not be dim
    vocab_size: int = 8192  # tokens: sqrt(vocab_size) rows and columns of corners, which share numbers with the classes
    whole_image_tokens: bool = (
        True  # two tokens more, which say that the whole picture is shown, as the released model wants
    )
    dropout: float = 0.1  # share of layouts hidden in training, for classifier-free guidance


class LayoutCondition(nn.Module):
    """batch["boxes"] float [B, n, 5] -> context [B, 3·objects (+ 2), dim]. A hidden layout has no boxes.

    A box is x0, y0, x1, y1 in shares of the picture and its class; class -1 fills up (see data/fields.py).
    """

    concat_channels = 0
    vector_dim = 0

    def __init__(self, config: LayoutConfig) -> None:
        super().__init__()
        if config.classes >= config.vocab_size:
            raise UserError(
                f"a layout's classes={config.classes} need as many tokens and one more; vocab_size={config.vocab_size}"
            )
        self.dropout, self.context_dim, self.objects = config.dropout, config.dim, config.objects
        self.side, self.none, self.whole = (
            math.isqrt(config.vocab_size - 1),
            config.vocab_size - 1,
            config.whole_image_tokens,
        )
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(3 * config.objects + 2 * config.whole_image_tokens, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.head_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        if config.dim % 4 == 0:  # corners begin as the sines of their places: neighbours alike, none to learn by heart
            with torch.no_grad():
                cells = self.tokens.weight[: self.side**2]
                cells += 2**0.5 * sincos_pos_embed_2d(self.side, self.side, config.dim, like=cells)

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        tokens = self.tokenize(batch["boxes"], drop)
        h = self.tokens(tokens) + self.positions.weight  # [B, L, dim]
        for block in self.blocks:
            h = block(h, None)
        return Cond(context=self.norm(h))

    def tokenize(self, boxes: Tensor, drop: Tensor) -> Tensor:
        """Boxes float [B, n, 5] -> int64 [B, L]: class, top left, bottom right of each box, then of the whole."""
        kind = boxes[:, :, 4].long()
        triples = torch.stack([kind, self._corner(boxes[:, :, 0:2]), self._corner(boxes[:, :, 2:4])], dim=2)
        triples = torch.where((drop[:, None] | (kind < 0))[:, :, None], self.none, triples)  # [B, n, 3]
        full = triples.new_full((len(boxes), self.objects, 3), self.none)
        count = min(self.objects, boxes.shape[1])
        full[:, :count] = triples[:, :count]
        if not self.whole:
            return full.flatten(1)
        ends = full.new_tensor([0, self.side * self.side - 1]).expand(len(boxes), 2)
        return torch.cat([full.flatten(1), ends], dim=1)

    def _corner(self, xy: Tensor) -> Tensor:
        """Places [..., 2] in shares of the picture -> the number of their cell."""
        cells = (xy.clamp(0, 1) * (self.side - 1)).round().long()
        return cells[..., 1] * self.side + cells[..., 0]
