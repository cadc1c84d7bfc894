"""Codebook usage over all ranks, and the replacement of dead codes during training (VQ)."""

import torch
from torch import Tensor

from latentdiff.autoencoder import bottleneck
from latentdiff.autoencoder.bottleneck import Codebook
from latentdiff.training.distributed import World
from latentdiff.training.state import TrainState

RECENT_STEPS = 100  # of the metric codebook_usage_100


class CodebookResetter:
    """Counts the use of the codes and resets dead ones; without a trained codebook it does nothing."""

    def __init__(self, state: TrainState, seed: int, world: World) -> None:
        self.train_state, self.seed, self.world, self.codebook = state, seed, world, state.model.quantize
        self.enabled = isinstance(self.codebook, Codebook) and self.codebook.embedding.weight.requires_grad
        if self.enabled:
            self.size = self.codebook.config.codebook_size
            self.idle = torch.zeros(self.size, dtype=torch.int64, device=world.device)  # steps since the last use
            self.counts = torch.zeros_like(self.idle)  # uses in this step

    def count(self, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Count the codes of a micro-batch; returns the terms of the bottleneck (of any kind) for the log."""
        if self.enabled:
            self.counts += bottleneck.code_counts(terms["indices"], self.size)
            self.latent = terms["latent"].detach()
        return {name: terms[name].mean() for name in ("kl", "codebook", "commitment") if name in terms}

    @torch.no_grad()
    def reset_dead_codes(self, step: int) -> dict[str, Tensor]:
        """Replace dead codes by encoder outputs of rank 0, with fresh moments and EMA; returns metrics for the log."""
        if not self.enabled:
            return {}
        counts = self.world.all_reduce_sum(self.counts)
        usage, perplexity = bottleneck.codebook_usage(counts)
        latent = self.world.all_reduce_sum(self.latent if self.world.is_main else torch.zeros_like(self.latent))
        dead = bottleneck.reset_dead_codes(self.codebook, self.idle, counts, latent, self.seed, step)
        weight = self.codebook.embedding.weight
        for moment in self.train_state.optimizer.state[weight].values():
            if moment.ndim == 2:
                moment.mul_(~dead[:, None])
        ema_weight = self.train_state.ema.model.quantize.embedding.weight
        ema_weight.copy_(torch.where(dead[:, None], weight, ema_weight))
        self.counts.zero_()
        recent = (self.idle < min(RECENT_STEPS, step + 1)).double().mean()
        reset = dead.double().sum()
        return {"codebook_usage": usage, "codebook_usage_100": recent, "perplexity": perplexity, "codes_reset": reset}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint: file name -> tensors."""
        return {"codebook": {"idle": self.idle}} if self.enabled else {}

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        if self.enabled:
            self.idle.copy_(tensors["codebook"]["idle"])
