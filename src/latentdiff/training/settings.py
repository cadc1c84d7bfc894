"""What both stages' loops are told: steps, batch, rate, precision, and how often to look."""

from dataclasses import dataclass

from latentdiff.config import UserError, check_types


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 100_000  # optimiser steps
    batch_size: int = 64  # samples per optimiser step, over all ranks and accumulation
    grad_accum_steps: int = 1  # each rank's share of a batch is computed in this many pieces
    lr: float = 1e-4  # the peak rate; never scaled behind your back
    lr_schedule: str = "constant"  # of the rate after warm-up: constant, cosine or linear (to lr_end)
    lr_end: float = 0.0  # the rate at the last step, as a fraction of lr, for cosine and linear
    lr_decay_start: float = (
        0.0  # share of the steps after which the rate begins to fall (cosine, linear); 0: the warm-up
    )
    lr_decay_end: int = 0  # the step from which on the rate stays there; 0: the last
    warmup_steps: int = 0  # steps over which the rate rises from lr_start
    lr_start: float = 0.0  # the rate at the first step of the warm-up, as a fraction of lr; 0: lr / warmup
    optimizer: str = "adamw"  # or muon: orthogonal steps of the hidden matrices, AdamW's of all else
    betas: tuple[float, ...] = (0.9, 0.999)  # of Adam
    weight_decay: float = 0.01  # on matrices and kernels; norms and biases have none
    grad_clip: float = 1.0  # largest gradient norm; 0 for no clipping
    ema_decay: float = 0.9999  # decay of the averaged weights, reached gradually
    ema_widths: tuple[float, ...] = ()  # power-function averages, e.g. 0.05,0.1, from which any is made afterwards
    precision: str = "auto"  # auto, fp32, bf16 or fp16: what autocast computes in
    device: str = "auto"  # auto, cuda or cpu
    deterministic: bool = False  # on CUDA: bit-exact restarts, slower
    compile: bool = False  # torch.compile stage two's U-Net in place: pays on CUDA, not in short CPU runs
    cuda_graph: bool = False  # on CUDA, one rank: forward and backward pass as one launch; pays for small networks
    seed: int = 0  # of weights, order, noise, everything
    num_workers: int = 0  # processes per rank that decode pictures ahead
    timeout: float = 30.0  # minutes that ranks wait for one of them before the run ends and names it
    log_every: int = 50  # steps between lines of metrics.jsonl
    val_every: int = 1000  # steps between validations
    sample_every: int = 1000  # steps between pictures in samples/
    checkpoint_every: int = 1000  # steps between checkpoints
    keep_checkpoints: int = 3  # checkpoints kept
    overfit: int = 0  # train on this many items only, a first check that anything is right; 0: all

    def __post_init__(self) -> None:
        check_types(self, "train")
        whole = "steps batch_size grad_accum_steps log_every val_every sample_every checkpoint_every keep_checkpoints"
        for name in whole.split():
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        if self.cuda_graph and self.grad_accum_steps > 1:
            raise UserError(
                f"train.cuda_graph is true, and train.grad_accum_steps is {self.grad_accum_steps}; it must be 1 then"
            )
        for name in ("lr_decay_end", "warmup_steps", "num_workers", "overfit"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must not be below 0")
        if not 0 <= self.ema_decay <= 1:
            raise UserError(
                f"train.ema_decay is {self.ema_decay}; it must be a share from 0 (no average) to 1, such as 0.9999"
            )
        if any(not 0 < width < 0.28 for width in self.ema_widths):
            raise UserError(f"train.ema_widths is {self.ema_widths}; each must be above 0 and below 0.28")
        if not 0 <= self.lr_decay_start < 1:
            raise UserError(
                f"train.lr_decay_start is {self.lr_decay_start}; it must be a share of the steps, 0 to below 1"
            )
        if not self.timeout > 0:
            raise UserError(f"train.timeout is {self.timeout}; it must be above 0 minutes")
        if not self.lr > 0:
            raise UserError(f"train.lr is {self.lr}; it must be above 0")
        if len(self.betas) != 2:
            raise UserError(f"train.betas is {self.betas}; it must be two numbers, for example 0.9,0.999")
        if self.optimizer not in ("adamw", "muon"):
            raise UserError(f"train.optimizer is {self.optimizer!r}; it must be adamw or muon")
        if self.lr_schedule not in ("constant", "cosine", "linear"):
            raise UserError(f"train.lr_schedule is {self.lr_schedule!r}; it must be constant, cosine or linear")

    def due(self, done: int, every: int) -> bool:
        """Whether to look, or to save, after `done` steps: every so often, and at the end."""
        return done % every == 0 or done == self.steps


# what may change when a run is resumed: how long, how it is watched, and on what it runs
FREE_ON_RESUME = (
    "train.steps", "train.log_every", "train.val_every", "train.sample_every", "train.checkpoint_every", "train.keep_checkpoints",
    "train.num_workers", "train.timeout", "train.device", "train.precision", "train.grad_accum_steps", "train.compile",
    "train.cuda_graph",
    "train.deterministic", "preview",
)  # fmt: skip
