"""The adversarial part of a stage-one training step: the discriminator, its optimizer and its schedule."""

import torch
from torch import Tensor, nn

from latentdiff.autoencoder import discriminator
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.training import optim
from latentdiff.training.distributed import World
from latentdiff.training.precision import autocast, precision
from latentdiff.training.settings import TrainConfig


class Adversarial:
    """The discriminator and what trains it; without one (config None, or weight 0) `network` is None."""

    def __init__(self, config: DiscriminatorConfig | None, cfg: TrainConfig, world: World) -> None:
        self.config, self.cfg, self.world, self.network = config, cfg, world, None
        if config is None or config.weight == 0:
            return
        self.train_from, self.start, self.ramp = discriminator.schedule_steps(config, cfg.steps)
        torch.manual_seed(cfg.seed + 1)
        network = discriminator.Discriminator(config)
        if config.norm == "batch" and world.size > 1 and world.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = world.to_device(network)
        self.ddp = world.ddp(self.network, broadcast_buffers=config.norm == "batch")
        self.optimizer = optim.build_optimizer(self.network, cfg)
        self.scaler = optim.build_scaler(cfg, world.device)  # not the autoencoder's: the losses differ in magnitude
        self.last_good_buffers = [b.clone() for b in self.network.buffers()]  # batch norm, after the last good step
        self.dtype = precision(cfg.precision, world.device)

    def disc_weight_at(self, step: int) -> float:
        """The weight of the adversarial loss, beside the adaptive weight: 0, then a linear ramp to config.weight."""
        if self.network is None or step < self.start:
            return 0.0
        return self.config.weight * min(1.0, (step - self.start + 1) / max(self.ramp, 1))

    def train_disc_at(self, step: int) -> bool:
        """Whether the discriminator is trained at `step`, counted from 0."""
        return self.network is not None and step >= self.train_from

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.network is None else list(self.network.parameters())

    def generator_loss(self, y: Tensor) -> Tensor:
        """-E D(y) with a gradient for y [B, 3, H, W] and none for the discriminator."""
        self.network.requires_grad_(False)
        with self.world.no_sync(self.ddp, True):
            loss = discriminator.generator_loss(self.ddp(y))
        self.network.requires_grad_(True)
        return loss

    def disc_forward_backward(self, x: Tensor, y: Tensor, accumulating: bool, loss_scale: float) -> dict[str, Tensor]:
        """Forward and backward of the discriminator's loss times loss_scale (1 / grad_accum_steps); metrics.

        x, y: images and their reconstructions [B, 3, H, W]. accumulating: DDP does not all-reduce yet.
        """
        with self.world.no_sync(self.ddp, accumulating):
            with autocast(x.device, self.dtype):
                if self.config.norm == "batch":  # as in the paper: real and fake have their own statistics
                    real, fake = self.ddp(x), self.ddp(y)
                else:
                    real, fake = self.ddp(torch.cat([x, y])).chunk(2)
                loss = discriminator.LOSSES[self.config.loss](real, fake)
            self.scaler.scale(loss * loss_scale).backward()
        accuracy = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean(), "disc_accuracy": accuracy}

    @torch.no_grad()
    def step(self, step: int) -> dict[str, Tensor]:
        """The optimizer step, with the autoencoder's learning rate; a skipped step changes no buffer either."""
        if not self.train_disc_at(step):
            return {}
        optim.set_lr(self.optimizer, optim.lr_at(self.cfg, step))
        grad_norm = optim.clip_grad_norm_(self.optimizer, self.scaler, self.cfg.grad_clip, self.world)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = grad_norm.isnan()
        for buffer, last_good in zip(self.network.buffers(), self.last_good_buffers):
            last_good.copy_(buffer.copy_(torch.where(skipped, last_good, buffer)))
        if step % 10 == 9:
            optim.reset_nonfinite(self.optimizer)
        return {"disc_skipped_steps": skipped.float()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint: file name -> tensors."""
        if self.network is None:
            return {}
        optimizer = optim.optimizer_tensors(self.optimizer)
        return {"discriminator": self.network.state_dict(), "discriminator_optimizer": optimizer}

    def state(self) -> dict:
        """What state.json of a checkpoint holds."""
        enabled = self.network is not None and self.scaler.is_enabled()
        return {"discriminator_scaler": self.scaler.state_dict()} if enabled else {}

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        if self.network is None:
            return
        self.network.load_state_dict(tensors["discriminator"])
        self.last_good_buffers = [b.clone() for b in self.network.buffers()]
        optim.load_optimizer(self.optimizer, tensors["discriminator_optimizer"])
        if self.scaler.is_enabled() and "discriminator_scaler" in state:
            self.scaler.load_state_dict(state["discriminator_scaler"])
