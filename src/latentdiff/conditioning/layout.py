"""A layout, boxes with classes, as a context (paper, sec. 4.3.1): a transformer over three tokens per box.

The tokens are those of the original's data (taming-transformers, with 8192 of them): a box is its class, its top left
and its bottom right corner; a corner is a cell of a 90 x 90 grid over the image, counted row by row; the last token
marks an empty slot.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule, read_classes
from latentdiff.conditioning.text import Block
from latentdiff.config import UserError
from latentdiff.data import fields
from latentdiff.data.image import CropParams
from latentdiff.layers import sincos_pos_embed_2d

FULL_IMAGE = CropParams(1.0, 0, 0, 1, 1, False)  # of an image whose boxes are fractions of its sides
EXAMPLE = '{"objects": {"bbox": [[x, y, width, height], ...], "categories": [0, ...]}}'


@dataclass(frozen=True)
class LayoutConfig(ConditionConfig):
    classes: int = 601  # of boxes, numbered 0 to classes - 1
    objects: int = 30  # largest number of boxes of an image; of more, the largest boxes are kept
    dim: int = 512  # width of the transformer and of its output, the context
    depth: int = 16  # transformer blocks
    heads: int = 8  # of every attention
    head_dim: int = 64  # width of a head; heads x head_dim need not be dim
    vocab_size: int = 8192  # tokens: sqrt(vocab_size) rows and columns of corners, which share numbers with the classes
    whole_image_tokens: bool = True  # two more tokens for "the whole image is shown", as in the released model
    dropout: float = 0.1  # fraction of layouts dropped in training, for classifier-free guidance

    reads = ("boxes",)

    @property
    def num_classes(self) -> dict[str, int]:
        return {"boxes": self.classes}

    def build(self, context: BuildContext) -> "LayoutCondition":
        return LayoutCondition(self)

    def inputs(self) -> dict[str, str]:
        return {
            "layout": f"boxes of classes 0 to {self.classes - 1}, at most {self.objects}: a JSON file {EXAMPLE}, in "
            'fractions of the image, or in pixels if the file has "width" and "height"'
        }

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, Tensor]:
        try:
            content = json.loads(Path(value).read_text())
            objects, names = dict(content["objects"]), class_names.get("boxes", [])
            objects["categories"] = [names.index(c) if c in names else c for c in objects["categories"]]
            sides = np.array([content.get("width", 1), content.get("height", 1)] * 2, np.float64)
            objects["bbox"] = np.array(objects["bbox"], np.float64).reshape(-1, 4) / sides
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--layout {value} cannot be read ({error}); it must be {EXAMPLE}") from None
        for box in objects["bbox"]:
            if min(box[2:]) <= 0 or min(box[:2]) < -1e-6 or max(box[:2] + box[2:]) > 1 + 1e-6:
                numbers = ", ".join(f"{v:g}" for v in box * sides)
                size = f"{sides[0]:g} x {sides[1]:g}"
                size += "" if "width" in content else " (boxes are fractions unless the file has width and height)"
                raise UserError(f"--layout {value}: the box [{numbers}] is not inside the image of {size}")
        if len(objects["bbox"]) > self.objects:
            raise UserError(f"--layout {value} has {len(objects['bbox'])} boxes; this run takes at most {self.objects}")
        read = lambda: fields.crop_boxes(objects, FULL_IMAGE)  # noqa: E731
        return {"boxes": torch.from_numpy(read_classes("layout", value, read, "boxes", self.classes))}


class LayoutCondition(ConditionModule):
    """batch["boxes"] float [B, n, 5] -> context [B, 3·objects (+ 2), dim]. A dropped layout has no boxes.

    A box is x0, y0, x1, y1 as fractions of the image and its class; class -1 is padding (see data/fields.py).
    """

    reads = LayoutConfig.reads

    def __init__(self, config: LayoutConfig) -> None:
        super().__init__()
        if config.classes >= config.vocab_size:
            raise UserError(f"vocab_size of a layout is {config.vocab_size}; it must be above classes={config.classes}")
        self.dropout, self.context_dim, self.objects = config.dropout, config.dim, config.objects
        self.side, self.empty_token, self.whole = (
            math.isqrt(config.vocab_size - 1),
            config.vocab_size - 1,
            config.whole_image_tokens,
        )
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(3 * config.objects + 2 * config.whole_image_tokens, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.head_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        if config.dim % 4 == 0:  # corners start as the sines of their positions: similar for neighbours
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
        """Boxes float [B, n, 5] -> int64 [B, L]: class, top left, bottom right of each box, then of the image."""
        kind = boxes[:, :, 4].long()
        triples = torch.stack([kind, self._corner(boxes[:, :, 0:2]), self._corner(boxes[:, :, 2:4])], dim=2)
        triples = torch.where((drop[:, None] | (kind < 0))[:, :, None], self.empty_token, triples)  # [B, n, 3]
        full = triples.new_full((len(boxes), self.objects, 3), self.empty_token)
        count = min(self.objects, boxes.shape[1])
        full[:, :count] = triples[:, :count]
        if not self.whole:
            return full.flatten(1)
        ends = full.new_tensor([0, self.side * self.side - 1]).expand(len(boxes), 2)
        return torch.cat([full.flatten(1), ends], dim=1)

    def _corner(self, xy: Tensor) -> Tensor:
        """Positions [..., 2] as fractions of the image -> the index of their grid cell."""
        cells = (xy.clamp(0, 1) * (self.side - 1)).round().long()
        return cells[..., 1] * self.side + cells[..., 0]
