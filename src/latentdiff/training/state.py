"""What a training run consists of and its checkpoints hold: weights, EMA, optimizer, loss scaler and the step."""

from pathlib import Path

import torch
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.training import checkpoint, optim
from latentdiff.training.cuda_graph import ADVICE, CudaGraph
from latentdiff.training.distributed import World
from latentdiff.training.ema import EMA
from latentdiff.training.post_hoc_ema import PostHocEMA
from latentdiff.training.precision import autocast, precision
from latentdiff.training.settings import TrainConfig


class TrainState:
    """The trained `model`, its `ema`, `optimizer` and `scaler`; `step` is the number of optimizer steps done."""

    def __init__(self, model: nn.Module, cfg: TrainConfig, world: World) -> None:
        if cfg.cuda_graph and world.size > 1:
            raise UserError(
                f"train.cuda_graph is true on {world.size} processes; it needs a single one, because DDP all-reduces "
                f"gradients during backward"
            )
        self.model, self.cfg, self.world, self.step = model, cfg, world, 0
        self.ema, self.post_hoc_ema = EMA(model, cfg.ema_decay), PostHocEMA(model, cfg.ema_widths)
        self.optimizer = optim.build_optimizer(model, cfg)
        self.scaler = optim.build_scaler(cfg, world.device)
        self.dtype = precision(cfg.precision, world.device)
        if cfg.cuda_graph and world.device.type == "cuda":
            self.clip_grad_norm_ = CudaGraph(self.clip_grad_norm_, advice=ADVICE, key=self.grad_ptrs)
            self.optimizer.step = CudaGraph(self.optimizer.step, advice=ADVICE, key=self.grad_ptrs)
            self.ema.lerp = CudaGraph(self.ema.lerp, advice=ADVICE)

    def autocast(self) -> torch.autocast:
        """Mixed precision: autocast to the type of train.precision."""
        return autocast(self.world.device, self.dtype)

    def clip_grad_norm_(self) -> Tensor:
        """Clip gradients to train.grad_clip; the norm before, NaN if the step is skipped (optim.clip_grad_norm_)."""
        return optim.clip_grad_norm_(self.optimizer, self.scaler, self.cfg.grad_clip, self.world)

    def grad_norms(self) -> dict[str, Tensor]:
        """The gradient norm of each component of the model, before clipping."""
        modules = {
            name: module for name, module in self.model.named_children() if any(True for _ in module.parameters())
        }
        return {f"grad_{name}": optim.grad_norm(module) / self.scaler.get_scale() for name, module in modules.items()}

    def end_step(self) -> None:
        """Update the post-hoc EMAs and count the step; every ten steps, check the moments of the optimizer."""
        self.post_hoc_ema.update(self.step)
        if self.step % 10 == 9:
            optim.reset_nonfinite(self.optimizer)
        self.step += 1

    def grad_ptrs(self) -> tuple[int, ...]:
        """Addresses of the gradients: a CUDA graph reads them where they were at its capture."""
        return tuple(p.grad.data_ptr() for p in self.model.parameters() if p.grad is not None)

    # ---- checkpoints

    def save(self, folder: Path, tensors: dict | None = None, scalars: dict | None = None) -> None:
        """Write RUN/checkpoints/step_<step> and, with train.ema_widths, RUN/ema_snapshots.

        tensors: the files of the checkpoint, if there are more than those of `tensors()`; scalars: more for state.json.
        """
        files, scalars = tensors or self.tensors(), self.scalars() | (scalars or {})
        checkpoint.save(folder / "checkpoints", self.step, files, scalars, self.cfg.keep_checkpoints)
        self.post_hoc_ema.save(folder, self.step)

    def load(self, path: Path) -> None:
        """Continue from a checkpoint."""
        tensors, scalars = checkpoint.load(path)
        self.load_tensors(tensors, scalars)
        tensors.clear()  # the files would stay memory-mapped, in every process, during the training

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File name -> tensors."""
        files = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": optim.optimizer_tensors(self.optimizer),
        }
        return files | self.post_hoc_ema.tensors()

    def scalars(self) -> dict:
        """What state.json holds beside the step."""
        return {"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {}

    def load_tensors(self, tensors: dict[str, dict[str, Tensor]], scalars: dict) -> None:
        self.model.load_state_dict(tensors["model"])
        self.ema.model.load_state_dict(tensors["ema"])
        self.post_hoc_ema.load(tensors)
        optim.load_optimizer(self.optimizer, tensors["optimizer"])
        if self.scaler.is_enabled() and "scaler" in scalars:
            self.scaler.load_state_dict(scalars["scaler"])
        self.step = scalars["step"]
