"""The discriminator of stage one as the loop uses it: with its optimiser, when it learns, and what it says of y."""

import torch
from torch import Tensor, nn

from latentdiff.autoencoder import discriminator
from latentdiff.autoencoder.discriminator import DiscriminatorConfig
from latentdiff.training import optim
from latentdiff.training.distributed import World
from latentdiff.training.precision import autocast, precision
from latentdiff.training.settings import TrainConfig


class Adversarial:
    """Without a discriminator (config None, or weight 0) `network` is None and every method does nothing."""

    def __init__(self, config: DiscriminatorConfig | None, train: TrainConfig, world: World) -> None:
        self.config, self.train, self.world, self.network = config, train, world, None
        if config is None or config.weight == 0:
            return
        torch.manual_seed(train.seed + 1)
        network = discriminator.Discriminator(config)
        if config.norm == "batch" and world.size > 1 and world.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        self.network = world.place(network)
        self.parallel = world.parallel(self.network, broadcast_buffers=config.norm == "batch")
        self.optimizer = optim.build(self.network, train)
        self.scaler = optim.fp16_scaler(train, world.device)  # its own: the two losses differ in size
        self.sound = [b.clone() for b in self.network.buffers()]  # the batch norm's, after the last good step
        self.dtype = precision(train.precision, world.device)
        discriminator.plan(config, train.steps)  # refused now rather than at its first step

    def weight_at(self, step: int) -> float:
        """What its term weighs in the autoencoder's loss."""
        return discriminator.weight_at(self.config, step, self.train.steps) if self.network is not None else 0.0

    def learns_at(self, step: int) -> bool:
        return self.network is not None and discriminator.learns_at(self.config, step, self.train.steps)

    def parameters(self) -> list[nn.Parameter]:
        return [] if self.network is None else list(self.network.parameters())

    def generator_loss(self, y: Tensor) -> Tensor:
        """-E D(y) with D frozen: its parameters take no part, so nothing of this step is left in it."""
        self.network.requires_grad_(False)
        with self.world.no_sync(self.parallel, True):
            g = discriminator.generator_loss(self.parallel(y))
        self.network.requires_grad_(True)
        return g

    def learn(self, x: Tensor, y: Tensor, more: bool, share: float) -> dict[str, Tensor]:
        """The backward pass of D's own loss, where it learns; numbers for the log.

        more: further pieces of this batch follow. share: of this piece in the batch.
        """
        with self.world.no_sync(self.parallel, more):
            with autocast(x.device, self.dtype):
                real, fake = self.judge(x, y)
                disc_loss = discriminator.LOSSES[self.config.loss](real, fake)
            optim.backward(disc_loss * share, self.scaler)
        right = ((real > 0).float().mean() + (fake < 0).float().mean()) / 2
        return {"disc_loss": disc_loss, "logits_real": real.mean(), "logits_fake": fake.mean(), "disc_right": right}

    def judge(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of real and drawn pictures; in one batch where the norm does not look at the batch."""
        if self.config.norm == "batch":
            return self.parallel(x), self.parallel(y)
        return self.parallel(torch.cat([x, y])).chunk(2)

    @torch.no_grad()
    def step(self, step: int) -> dict[str, Tensor]:
        """At the autoencoder's rate; a bad step leaves no trace, in the running statistics either."""
        if not self.learns_at(step):
            return {}
        norm = optim.step(self.optimizer, self.train, optim.rate(self.train, step), self.scaler, self.world)
        bad = ~torch.isfinite(norm)
        for now, before in zip(self.network.buffers(), self.sound):
            before.copy_(now.copy_(torch.where(bad, before, now)))
        if step % 10 == 9:
            optim.mend(self.optimizer)
        return {"disc_skipped": bad.float()}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint."""
        if self.network is None:
            return {}
        return {
            "discriminator": self.network.state_dict(),
            "discriminator_optimizer": optim.state_tensors(self.optimizer),
        }

    def state(self) -> dict:
        """What of a checkpoint is no tensor."""
        return {"discriminator": optim.state(self.scaler)} if self.network is not None else {}

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        if self.network is not None:
            self.network.load_state_dict(tensors["discriminator"])
            self.sound = [b.clone() for b in self.network.buffers()]
            scale = state.get("discriminator", {})
            optim.load_state(self.optimizer, self.scaler, tensors["discriminator_optimizer"], scale)
