"""Text as a context (paper, sec. 4.3.1): a pre-norm transformer over the caption's tokens, trained with the U-Net."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.layers import Attention


@dataclass(frozen=True)
class TextConfig:
    dim: int = 1280  # width of the transformer and of the context that it gives
    depth: int = 32  # transformer blocks
    heads: int = 8  # of every attention
    head_dim: int = 64  # width of a head; heads x head_dim need not be dim
    max_length: int = 77  # tokens of a caption; longer ones are cut
    vocab_size: int = 30522  # tokens that the tokenizer may know
    dropout: float = 0.1  # share of captions hidden in training, for classifier-free guidance
    tokenizer: str = ""  # a vocab.txt or tokenizer.json; empty: one is trained on the captions
    mask_padding: bool = True  # padding is not attended to; false as in the original release

    def __post_init__(self) -> None:
        if self.max_length < 3:
            raise UserError(
                f"Text's length is {self.max_length}; it must be at least 3: [CLS], [SEP] and a token between"
            )


class TextCondition(nn.Module):
    """batch["tokens"] int [B, L], L <= length -> context [B, L, dim] with its mask. A hidden caption reads as "".

    pad_id is the tokenizer's padding; `empty` [length] are the tokens of "".
    """

    concat_channels = 0
    vector_dim = 0

    def __init__(self, config: TextConfig, pad_id: int, empty: Tensor) -> None:
        super().__init__()
        self.dropout, self.context_dim = config.dropout, config.dim
        self.pad_id, self.mask_padding = pad_id, config.mask_padding
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)
        self.blocks = nn.ModuleList(Block(config.dim, config.heads, config.head_dim) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim)
        self.register_buffer("empty", empty.clone())

    def forward(self, batch: dict, drop: Tensor) -> Cond:
        tokens = batch["tokens"]
        tokens = torch.where(drop[:, None], self.empty[: tokens.shape[1]], tokens)
        mask = None
        if self.mask_padding:
            mask = tokens != self.pad_id  # [B, L]
            mask[:, 0] = True  # attention over nothing would be NaN
        h = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]  # [B, L, dim]
        for block in self.blocks:
            h = block(h, mask)
        return Cond(context=self.norm(h), context_mask=mask)


class Block(nn.Module):
    """Self-attention and feed-forward, each behind a LayerNorm and with a skip."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # queries and keys sharper than torch starts them, all else softer and without biases: otherwise what words say
        # together ("above", and which was named first) reaches the U-Net too faintly to be learnt
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
