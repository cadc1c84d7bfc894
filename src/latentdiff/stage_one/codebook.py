"""The health of a VQ codebook: usage and perplexity over all ranks, and new life for codes that nobody uses."""

import torch
from torch import Tensor

from latentdiff.autoencoder import bottleneck
from latentdiff.autoencoder.bottleneck import Codebook
from latentdiff.training.distributed import World
from latentdiff.training.state import TrainState

RECENT = 100  # steps


class CodebookResetter:
    """Where the bottleneck of learner.model is no codebook, nothing is counted and nothing revived."""

    def __init__(self, learner: TrainState, seed: int, world: World) -> None:
        self.learner, self.seed, self.world, self.codebook = learner, seed, world, learner.model.quantize
        self.on = isinstance(self.codebook, Codebook) and self.codebook.embedding.weight.requires_grad
        if self.on:
            self.size = self.codebook.config.codebook_size
            self.idle = torch.zeros(self.size, dtype=torch.int64, device=world.device)  # steps without use
            self.counts = torch.zeros_like(self.idle)  # uses in this step

    def count(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """What any bottleneck gave for a piece of the batch; its terms for the log."""
        if self.on:
            self.counts += bottleneck.count(terms["codes"], self.size)
            self.latent = terms["latent"].detach()
        return {name: terms[name].mean() for name in ("kl", "codebook", "commitment") if name in terms}

    @torch.no_grad()
    def revive(self, step: int) -> dict[str, Tensor]:
        """Dead codes become encoder outputs, equally on all ranks; their moments start anew. Numbers for the log."""
        if not self.on:
            return {}
        counts = self.world.sum(self.counts)
        usage, perplexity = bottleneck.usage(counts)
        latent = self.world.sum(self.latent if self.world.is_main else torch.zeros_like(self.latent))  # rank 0's
        dead = bottleneck.revive(self.codebook, self.idle, counts, latent, self.seed, step)
        weight = self.codebook.embedding.weight
        for moment in self.learner.optimizer.state[weight].values():
            if moment.ndim == 2:
                moment.mul_(~dead[:, None])
        average = self.learner.ema.model.quantize.embedding.weight
        average.copy_(torch.where(dead[:, None], weight, average))
        self.counts.zero_()
        recent = (self.idle < min(RECENT, step + 1)).double().mean()
        return {"code_usage": usage, "code_recent": recent, "perplexity": perplexity, "revived": dead.double().sum()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint."""
        return {"codes": {"idle": self.idle}} if self.on else {}

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self.on:
            self.idle.copy_(tensors["codes"]["idle"])
