"""Training of the small classifiers that read sampled images."""

import torch

from latentdiff.training import optim
from latentdiff.training.settings import TrainConfig


def optimizer_step(optimizer: torch.optim.Optimizer, cfg: TrainConfig, step: int) -> None:
    """One optimizer step in float32, with the learning rate of that step and gradient clipping."""
    optim.set_lr(optimizer, optim.lr_at(cfg, step))
    optim.clip_grad_norm_(optimizer, torch.amp.GradScaler("cpu", enabled=False), cfg.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
