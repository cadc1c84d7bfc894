"""A small classifier trained on the labels and caption words of the data: features without published weights.

It depends on the dataset alone, not on the run, and is trained deterministically on the CPU. Other runs can be
evaluated with its file.
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

CHANNELS = (3, 32, 64, 128, 128)
TRAIN_CONFIG = TrainConfig(steps=700, batch_size=64, lr=2e-3, lr_schedule="cosine", warmup_steps=50, device="cpu")
MAX_ITEMS = 2000  # items that the vocabulary and the statistics of the features are computed from
METADATA_KEY = "latentdiff.feature_net"


class FeatureNet(nn.Module):
    """Images [B, 3, size, size] -> features [B, 128], with linear heads for the label and the caption words."""

    def __init__(self, num_labels: int, vocabulary: list[str], size: int) -> None:
        super().__init__()
        self.num_labels, self.vocabulary, self.size = num_labels, vocabulary, size
        self.convs = nn.Sequential(*(layer for c_in, c_out in zip(CHANNELS, CHANNELS[1:]) for layer in (
            nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU(), nn.AvgPool2d(2))))  # fmt: skip
        self.proj = nn.Linear(CHANNELS[-1] * 4, 128)
        self.label_head, self.word_head = nn.Linear(128, num_labels), nn.Linear(128, len(vocabulary))
        self.register_buffer("mean", torch.zeros(128))  # of the features over the dataset
        self.register_buffer("std", torch.ones(128))

    def hidden(self, x: Tensor) -> Tensor:
        """The features before normalization, [B, 128]."""
        h = F.adaptive_avg_pool2d(self.convs(x), 2).flatten(1)  # [B, 512]; 2 x 2, to keep positions
        return F.silu(self.proj(h))  # [B, 128]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Features with mean 0 and standard deviation 1 over the dataset [B, 128], and logits [B, num_labels] or None.

        Normalization gives each feature the same weight in a distance.
        """
        h = self.hidden(x)
        return (h - self.mean) / self.std, self.label_head(h) if self.num_labels else None

    def loss(self, batch: dict) -> Tensor:
        """Cross-entropy of the label plus 4 times the binary cross-entropy of the caption words."""
        h = self.hidden(resize(loader.images(batch), self.size))
        loss = h.new_zeros(())
        if self.num_labels:
            loss = loss + F.cross_entropy(self.label_head(h), batch["label"])
        if self.vocabulary:
            captions = [set(_split_words(caption)) for caption in batch.get("caption", [])]
            has_word = torch.tensor([[float(word in caption) for word in self.vocabulary] for caption in captions])
            loss = loss + 4 * F.binary_cross_entropy_with_logits(self.word_head(h), has_word)
        return loss


def has_targets(data: Any) -> bool:
    """Whether a dataset has labels or captions to train on."""
    num_labels, vocabulary = _count_targets(data)
    return num_labels > 1 or len(vocabulary) > 1


def train(data: Any, size: int) -> FeatureNet:
    """Train on a dataset, at size x size pixels; the same weights on every machine up to rounding errors."""
    with torch.random.fork_rng(devices=[]):  # leaves the global random state unchanged
        torch.manual_seed(0)
        net = FeatureNet(*_count_targets(data), size)
        optimizer = optim.build_optimizer(net, TRAIN_CONFIG)
        scaler, batch_size = optim.build_scaler(TRAIN_CONFIG, torch.device("cpu")), TRAIN_CONFIG.batch_size
        batches = loader.batches(data, 0, batch_size, [range(batch_size)], 0, TRAIN_CONFIG.steps)
        for step, batch in enumerate(batches):
            net.loss(batch).backward()
            optim.set_lr(optimizer, optim.lr_at(TRAIN_CONFIG, step))
            optim.clip_grad_norm_(optimizer, scaler, TRAIN_CONFIG.grad_clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    net.eval().requires_grad_(False)
    batches = loader.sequential_batches(data, range(min(len(data), MAX_ITEMS)), 100)
    h = torch.cat([net.hidden(resize(loader.images(batch), size)) for batch in batches])  # [N, 128]
    net.mean.copy_(h.mean(0))
    net.std.copy_(h.std(0).clamp(min=1e-6))
    return net


def save(net: FeatureNet, path: Path) -> None:
    arguments = {"num_labels": net.num_labels, "vocabulary": net.vocabulary, "size": net.size}
    checkpoint.write_tensors(path, net.state_dict(), {METADATA_KEY: json.dumps(arguments)})


def load(path: Path) -> FeatureNet:
    """Raises: UserError if the file was not written by `save`."""
    tensors = checkpoint.read_tensors(path)
    try:
        net = FeatureNet(**json.loads(checkpoint.read_metadata(path)[METADATA_KEY]))
        net.load_state_dict(tensors)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{path} is not a feature network written by evaluate.py ({error}); delete it") from error
    return net.eval().requires_grad_(False)


def resize(x: Tensor, height: int, width: int = 0) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width or height], antialiased bilinear; unchanged if it has this size."""
    size = (height, width or height)
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", antialias=True)


def _count_targets(data: Any) -> tuple[int, list[str]]:
    """The number of labels, and the 64 most frequent of the words that are in 1 % to 95 % of the captions, sorted."""
    records = [data.record(i, i) for i in range(0, len(data), -(-len(data) // MAX_ITEMS))]
    labels = [record["label"] for record in records if isinstance(record.get("label"), int)]
    captions = [set(_split_words(record["caption"])) for record in records if record.get("caption")]
    counts = Counter(word for caption in captions for word in sorted(caption))
    informative = [word for word, n in counts.items() if 0.01 * len(captions) < n < 0.95 * len(captions)]
    vocabulary = sorted(informative, key=lambda word: (-counts[word], word))[:64]
    all_labelled = len(labels) == len(records) and len(set(labels)) > 1
    num_labels = len(getattr(data, "label_names", ())) or max(labels, default=0) + 1
    return num_labels if all_labelled else 0, sorted(vocabulary)


def _split_words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())
