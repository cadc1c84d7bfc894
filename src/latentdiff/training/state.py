"""What learns: a network with its average, its optimiser and, in fp16, its scaler, saved and resumed as one."""

import torch
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.training import optim
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import World
from latentdiff.training.ema import EMA
from latentdiff.training.post_hoc_ema import PostHocEMA
from latentdiff.training.precision import autocast, precision
from latentdiff.training.settings import TrainConfig

ADVICE = "use train.cuda_graph=false"


class TrainState:
    """The trained network `model`; `ema.model` is its average, which is watched, kept and used."""

    def __init__(self, model: nn.Module, train: TrainConfig, world: World) -> None:
        self.model, self.train, self.world, self.device = model, train, world, world.device
        if train.cuda_graph and world.size > 1:
            raise UserError(
                f"train.cuda_graph is true on {world.size} ranks, which average while they walk; it needs one"
            )
        self.ema, self.averages = EMA(model, train.ema_decay), PostHocEMA(model, train.ema_widths)
        self.optimizer = optim.build(model, train)
        self.scaler = optim.fp16_scaler(train, world.device)
        self.dtype = precision(train.precision, world.device)
        self.recorded = train.cuda_graph and world.device.type == "cuda"
        self.moved = CudaGraph(self.move, advice=ADVICE) if self.recorded else self.move

    def autocast(self) -> torch.autocast:
        return autocast(self.device, self.dtype)

    @property
    def scale(self) -> float:
        """What a loss is multiplied by so that its fp16 gradients do not underflow; 1 in other types."""
        return optim.scale(self.scaler)

    def norms(self) -> dict[str, Tensor]:
        """The gradient norm of each component, to be asked before the step."""
        parts = {name: part for name, part in self.model.named_children() if any(True for _ in part.parameters())}
        return {f"grad_{name}": optim.norm_of(part) / self.scale for name, part in parts.items()}

    def step(self, step: int) -> dict[str, Tensor]:
        """The step numbered `step`, counted from 0, at its rate, and the average after it; numbers for the log."""
        lr, share, where = optim.rate(self.train, step), self.ema.share(step), ()
        if self.recorded:  # a graph reads numbers and gradients where they were
            lr, share = (torch.full((), x, device=self.device) for x in (lr, share))
            where = tuple(p.grad.data_ptr() for p in self.model.parameters() if p.grad is not None)
        norm = self.moved(lr, share, where)
        self.optimizer.zero_grad(set_to_none=True)  # what is played back leaves the host's variables as they are
        self.averages.update(step)
        if step % 10 == 9:
            optim.mend(self.optimizer)
        return {"grad_norm": norm, "skipped": (~torch.isfinite(norm)).float()}

    def move(self, lr: float | Tensor, share: float | Tensor, where: tuple[int, ...]) -> Tensor:
        """Weights and average; the gradient norm."""
        norm = optim.step(self.optimizer, self.train, lr, self.scaler, self.world)
        self.ema.update(share, norm)
        return norm

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": optim.state_tensors(self.optimizer),
        } | self.averages.tensors()

    def state(self) -> dict:
        """What of a checkpoint is no tensor."""
        return optim.state(self.scaler)

    def load(self, tensors: dict[str, dict[str, Tensor]], state: dict) -> None:
        self.model.load_state_dict(tensors["model"])
        self.ema.model.load_state_dict(tensors["ema"])
        self.averages.load(tensors)
        optim.load_state(self.optimizer, self.scaler, tensors["optimizer"], state)
