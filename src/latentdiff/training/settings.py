"""Training settings of both stages: steps, batch size, learning rate, EMA, precision and intervals."""

from dataclasses import dataclass

from latentdiff.config import UserError, check_types


@dataclass(frozen=True)
class TrainConfig:
    steps: int = 100_000  # optimizer steps
    batch_size: int = 64  # samples per optimizer step, over all processes and gradient accumulation steps
    grad_accum_steps: int = 1  # gradient accumulation: micro-batches per process and optimizer step
    lr: float = 1e-4  # peak learning rate; it is never scaled by the batch size
    lr_schedule: str = "constant"  # learning rate after warm-up: constant, cosine or linear (to lr_end)
    lr_end: float = 0.0  # learning rate at the last step, as a fraction of lr, for cosine and linear
    lr_decay_start: float = 0.0  # fraction of the steps after which cosine or linear decay starts; 0: after warm-up
    lr_decay_end: int = 0  # step at which the decay ends; 0: the last step
    warmup_steps: int = 0  # steps over which the learning rate increases linearly from lr_start to lr
    lr_start: float = 0.0  # learning rate at the first warm-up step, as a fraction of lr; 0: lr / warmup_steps
    optimizer: str = "adamw"  # adamw, or muon: orthogonalised updates of hidden matrices and AdamW for all others
    betas: tuple[float, ...] = (0.9, 0.999)  # betas of Adam
    weight_decay: float = 0.01  # weight decay of matrices and convolution kernels; norms and biases have none
    grad_clip: float = 1.0  # maximum gradient norm; 0: no clipping
    ema_decay: float = 0.9999  # decay of the EMA of the weights, after a warm-up; 0: no EMA
    ema_widths: tuple[float, ...] = ()  # post-hoc EMA (EDM2): relative widths to record, e.g. 0.05,0.1
    precision: str = "auto"  # mixed precision: auto, fp32 (none), bf16 or fp16
    device: str = "auto"  # auto, cuda or cpu
    deterministic: bool = False  # on CUDA: bit-exact resumption, slower
    compile: bool = False  # torch.compile the U-Net of stage two; pays off on CUDA, not in short CPU runs
    cuda_graph: bool = False  # CUDA graph of forward and backward; faster for small networks, single process only
    seed: int = 0  # seed of all randomness: initial weights, order of the data, noise
    num_workers: int = 0  # data loader workers per process
    timeout: float = 30.0  # minutes that processes wait for a lost one before the run ends with an error
    log_every: int = 50  # steps between lines of metrics.jsonl
    val_every: int = 1000  # steps between validations
    sample_every: int = 1000  # steps between image grids in samples/
    checkpoint_every: int = 1000  # steps between checkpoints
    keep_checkpoints: int = 3  # number of checkpoints to keep
    overfit: int = 0  # train on this many items only, to check that the model can overfit them; 0: all

    def __post_init__(self) -> None:
        check_types(self, "train")
        counts = ("steps", "batch_size", "grad_accum_steps", "keep_checkpoints")
        for name in (*counts, "log_every", "val_every", "sample_every", "checkpoint_every"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("lr_decay_end", "warmup_steps", "num_workers", "overfit"):
            self._require(name, getattr(self, name) >= 0, "0 or above")
        self._require("ema_decay", 0 <= self.ema_decay <= 1, "from 0 (no EMA) to 1, for example 0.9999")
        self._require("ema_widths", all(0 < w < 0.28 for w in self.ema_widths), "numbers above 0 and below 0.28")
        self._require("lr_decay_start", 0 <= self.lr_decay_start < 1, "a fraction of the steps, from 0 to below 1")
        self._require("grad_clip", self.grad_clip >= 0, "0 (no clipping) or above")
        self._require("timeout", self.timeout > 0, "above 0 minutes")
        self._require("lr", self.lr > 0, "above 0")
        self._require("betas", len(self.betas) == 2, "two numbers, for example 0.9,0.999")
        self._require("optimizer", self.optimizer in ("adamw", "muon"), "adamw or muon")
        schedules = ("constant", "cosine", "linear")
        self._require("lr_schedule", self.lr_schedule in schedules, "constant, cosine or linear")
        if self.cuda_graph:
            self._require("grad_accum_steps", self.grad_accum_steps == 1, "1 with train.cuda_graph=true")

    def _require(self, name: str, valid: bool, allowed: str) -> None:
        if not valid:
            raise UserError(f"train.{name} is {getattr(self, name)!r}; it must be {allowed}")

    def due(self, step: int, every: int) -> bool:
        """Whether an action with this interval is due after `step` steps; every action is due after the last step."""
        return step % every == 0 or step == self.steps


# fields that may change when a run is resumed (by prefix): they do not change what is learned
CHANGEABLE_ON_RESUME = (
    "train.steps", "train.log_every", "train.val_every", "train.sample_every", "train.checkpoint_every",
    "train.keep_checkpoints", "train.num_workers", "train.timeout", "train.device", "train.precision",
    "train.grad_accum_steps", "train.compile", "train.cuda_graph", "train.deterministic", "preview",
)  # fmt: skip
