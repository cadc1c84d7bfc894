"""A small network that learns what the data says of its pictures, so that features exist where no weights are at hand.

It depends on the data alone (not on the run), is trained deterministically on the CPU, and is kept as one file that
other runs can be measured with.
"""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.training import checkpoint, optim
from latentdiff.training.settings import TrainConfig

WIDTHS = (3, 32, 64, 128, 128)
TRAIN = TrainConfig(steps=700, batch_size=64, lr=2e-3, lr_schedule="cosine", warmup_steps=50, device="cpu")
LOOKED_AT = 2000  # items whose captions decide which words are learned


class FeatureNet(nn.Module):
    """Label and caption words of a picture: [B, 3, size, size] -> features [B, 128], their logits."""

    def __init__(self, labels: int, words: list[str], size: int) -> None:
        super().__init__()
        self.labels, self.words, self.size = labels, words, size
        self.body = nn.Sequential(*(layer for a, b in zip(WIDTHS, WIDTHS[1:]) for layer in (
            nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU(), nn.AvgPool2d(2))))  # fmt: skip
        self.features = nn.Linear(WIDTHS[-1] * 4, 128)
        self.label, self.word = nn.Linear(128, labels), nn.Linear(128, len(words))
        self.register_buffer("mean", torch.zeros(128))  # of the features over the data
        self.register_buffer("std", torch.ones(128))

    def forward(self, x: Tensor) -> Tensor:
        h = F.adaptive_avg_pool2d(self.body(x), 2).flatten(1)  # [B, 512]: quarters, since places matter
        return F.silu(self.features(h))

    def seen(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features of mean 0 and deviation 1 over the data, so that no few of them rule a distance; label's logits."""
        h = self(x)
        return (h - self.mean) / self.std, self.label(h) if self.labels else None

    def targets(self, batch: dict) -> tuple[Tensor | None, Tensor | None]:
        """int64 [B] labels, float [B, words] of which words a caption has."""
        captions = [set(_words(caption)) for caption in batch.get("caption", [])]
        has = torch.tensor([[float(word in caption) for word in self.words] for caption in captions])
        return batch["label"] if self.labels else None, has if self.words else None


def can_learn(data: Any) -> bool:
    """Whether a data set says anything of its pictures."""
    labels, words = _vocabulary(data)
    return labels > 1 or len(words) > 1


def train(data: Any, size: int) -> FeatureNet:
    """A judge of the data set; the same wherever it is trained, up to the rounding of the machine."""
    with torch.random.fork_rng(devices=[]):  # whoever draws next is not disturbed
        torch.manual_seed(0)
        judge = FeatureNet(*_vocabulary(data), size)
        optimizer, everything = optim.build(judge, TRAIN), range(TRAIN.batch_size)
        for step, batch in enumerate(loader.batches(data, 0, TRAIN.batch_size, [everything], 0, TRAIN.steps)):
            _loss(judge, batch).backward()
            optim.step(optimizer, TRAIN, optim.rate(TRAIN, step))
    judge.eval().requires_grad_(False)
    some = loader.sequential_batches(data, range(min(len(data), LOOKED_AT)), 100)
    h = torch.cat([judge(resize(loader.images(batch), size)) for batch in some])
    judge.mean.copy_(h.mean(0))
    judge.std.copy_(h.std(0).clamp(min=1e-6))
    return judge


def _loss(judge: FeatureNet, batch: dict) -> Tensor:
    h, (label, words) = judge(resize(loader.images(batch), judge.size)), judge.targets(batch)
    loss = h.new_zeros(())
    if label is not None:
        loss = loss + F.cross_entropy(judge.label(h), label)
    if words is not None:
        loss = loss + 4 * F.binary_cross_entropy_with_logits(judge.word(h), words)
    return loss


def save(judge: FeatureNet, path: Path) -> None:
    about = {"latentdiff.judge": json.dumps({"labels": judge.labels, "words": judge.words, "size": judge.size})}
    checkpoint.write_tensors(path, judge.state_dict(), about)


def load(path: Path) -> FeatureNet:
    """UserError where the file is no judge."""
    tensors = checkpoint.read_tensors(path)
    try:
        about = json.loads(checkpoint.read_metadata(path)["latentdiff.judge"])
        judge = FeatureNet(about["labels"], about["words"], about["size"])
        judge.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} does not hold features that evaluate.py made ({error})") from error
    return judge.eval().requires_grad_(False)


def resize(x: Tensor, height: int, width: int = 0) -> Tensor:
    """[B, 3, H, W] -> [B, 3, height, width or height], antialiased; the same size stays as it is."""
    size = (height, width or height)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def _vocabulary(data: Any) -> tuple[int, list[str]]:
    """How many labels there are, and the 64 commonest words that captions have now and then."""
    records = [data.record(i, i) for i in range(0, len(data), -(-len(data) // LOOKED_AT))]
    labels = [record["label"] for record in records if isinstance(record.get("label"), int)]
    captions = [set(_words(record["caption"])) for record in records if record.get("caption")]
    counts = Counter(word for caption in captions for word in sorted(caption))
    telling = [word for word, n in counts.items() if 0.01 * len(captions) < n < 0.95 * len(captions)]
    words = sorted(telling, key=lambda word: (-counts[word], word))[:64]
    whole = len(labels) == len(records) and len(set(labels)) > 1
    names = len(getattr(data, "label_names", ())) or max(labels, default=0) + 1
    return names if whole else 0, sorted(words)


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())
