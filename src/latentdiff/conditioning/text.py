"""Text (paper, sec. 4.3.1): a pre-norm transformer over the tokens of the caption, trained jointly with the U-Net."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.conditioning.condition import BuildContext, ConditionConfig, ConditionModule
from latentdiff.config import UserError
from latentdiff.data.tokenizer import CaptionTokenizer
from latentdiff.layers import Attention


@dataclass(frozen=True)
class TextConfig(ConditionConfig):
    dim: int = 1280  # width of the transformer and of its output, the context
    depth: int = 32  # transformer blocks
    heads: int = 8  # of every attention
    head_dim: int = 64  # width of a head; heads x head_dim need not be dim
    max_length: int = 77  # tokens of a caption; longer captions are truncated
    vocab_size: int = 30522  # largest size of the tokenizer's vocabulary
    dropout: float = 0.1  # fraction of captions dropped in training, for classifier-free guidance
    tokenizer: str = ""  # a vocab.txt or tokenizer.json; empty: one is trained on the captions
    mask_padding: bool = True  # padding tokens are not attended to; false as in the original release

    reads = ("caption",)
    reads_files = False

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise UserError(f"max_length of Text is {self.max_length}; it must be at least 3: [CLS], a token and [SEP]")

    def build(self, context: BuildContext) -> "TextCondition":
        return TextCondition(self, context.tokenizer.pad_id, context.tokenizer.empty, context.tokenizer)

    def inputs(self) -> dict[str, str]:
        return {"prompt": "a description of the image"}

    def read_input(self, option: str, value: str, class_names: dict[str, list[str]]) -> dict[str, str]:
        return {"caption": value}


class TextCondition(ConditionModule):
    """batch["tokens"] int [B, L], L <= max_length -> context [B, L, dim] with its mask. A dropped caption is "".

    Args:
        pad_id: the tokenizer's padding token.
        empty: tokens of "", int [max_length].
        tokenizer: turns captions into tokens (`prepare`); it is not part of the weights.
    """

    reads = TextConfig.reads

    def __init__(
        self, config: TextConfig, pad_id: int, empty: Tensor, tokenizer: CaptionTokenizer | None = None
    ) -> None:  # fmt: skip
        super().__init__()
        self.dropout, self.context_dim, self.tokenizer = config.dropout, config.dim, tokenizer
        self.pad_id, self.mask_padding = pad_id, config.mask_padding
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.head_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.register_buffer("empty", empty.clone())

    def prepare(self, batch: dict, strict: bool = False) -> dict[str, Tensor]:
        return {"tokens": self.tokenizer.encode(batch["caption"], strict)}

    def forward(self, batch: dict[str, Tensor], drop: Tensor) -> Cond:
        tokens = batch["tokens"]
        tokens = torch.where(drop[:, None], self.empty[: tokens.shape[1]], tokens)
        mask = None
        if self.mask_padding:
            mask = tokens != self.pad_id  # [B, L]
            mask[:, 0] = True  # attention over no key would be NaN
        h = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]  # [B, L, dim]
        for block in self.blocks:
            h = block(h, mask)
        return Cond(context=self.norm(h), context_mask=mask)


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and with a skip."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # larger queries and keys than torch's default, all else smaller and without biases: with the default, relations
        # between words ("above", and which object was named first) reach the U-Net too weakly to be learned
        self.attention = Attention(dim, heads, head_dim, dim, gain=1.4)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        for linear in (self.attention.v, self.attention.out, self.mlp[0], self.mlp[2]):
            nn.init.normal_(linear.weight, std=0.4 * linear.in_features**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)

    def forward(self, h: Tensor, mask: Tensor | None) -> Tensor:
        tokens = self.norm1(h)
        h = h + self.attention(tokens, tokens, mask)
        return h + self.mlp(self.norm2(h))
