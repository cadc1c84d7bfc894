"""Learning rate schedule, optimizer, gradient clipping, and the rule that a non-finite gradient changes nothing."""

import math

import torch
from torch import Tensor, nn

from latentdiff.training import muon
from latentdiff.training.distributed import SINGLE_PROCESS, World
from latentdiff.training.precision import precision
from latentdiff.training.settings import TrainConfig


def lr_at(cfg: TrainConfig, step: int) -> float:
    """The learning rate of a step counted from 0: linear warm-up, then constant, cosine or linear decay."""
    if step < cfg.warmup_steps:
        start = cfg.lr_start
        return cfg.lr * (start + (1 - start) * step / cfg.warmup_steps if start else (step + 1) / cfg.warmup_steps)
    end = cfg.lr_decay_end or cfg.steps
    begin = max(cfg.warmup_steps, round(cfg.lr_decay_start * end))
    done = min(1.0, max(0, step - begin) / max(1, end - begin))
    decay = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[cfg.lr_schedule]
    floor = 1.0 if cfg.lr_schedule == "constant" else cfg.lr_end
    return cfg.lr * (floor + (1 - floor) * decay)


def build_optimizer(module: nn.Module, cfg: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov & Hutter 2019), or Muon, over the trainable parameters; no weight decay on vectors."""
    weights = [p for p in module.parameters() if p.requires_grad]
    hidden = {id(p) for p in muon.hidden_matrices(module)} if cfg.optimizer == "muon" else set()
    groups = [
        {"params": [p for p in weights if id(p) in hidden], "weight_decay": cfg.weight_decay, "orthogonal": True},
        {"params": [p for p in weights if p.ndim >= 2 and id(p) not in hidden], "weight_decay": cfg.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups, device = [g for g in groups if g["params"]], weights[0].device
    bf16 = precision(cfg.precision, device) == torch.bfloat16  # small gradients underflow in float16
    captured = cfg.cuda_graph and device.type == "cuda"
    lr = torch.full((), cfg.lr, device=device) if captured else cfg.lr
    options = {"fused": True, "capturable": captured}
    if cfg.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr, tuple(cfg.betas), **options)
    return muon.Muon(groups, lr, tuple(cfg.betas), torch.bfloat16 if bf16 else torch.float32, **options)


def build_scaler(cfg: TrainConfig, device: torch.device) -> torch.amp.GradScaler:
    """The loss scaler of fp16 mixed precision; disabled, and then without effect, in every other precision."""
    enabled = precision(cfg.precision, device) == torch.float16
    scaler = torch.amp.GradScaler(device.type, enabled=enabled)
    if enabled:
        scaler.scale(torch.zeros((), device=device))  # creates the scale
    return scaler


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of all groups; a tensor, which a CUDA graph reads, is filled in place."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


@torch.no_grad()
def clip_grad_norm_(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, max_norm: float, world: World = SINGLE_PROCESS
) -> Tensor:  # fmt: skip
    """Unscale the gradients, update the loss scale and clip the gradient norm to max_norm (0: no clipping).

    If a gradient or a moment of the optimizer is not finite, on any rank, `optimizer.step()` changes neither weights
    nor moments: the fused kernel reads `found_inf` on the device, without a host-device sync.

    Returns: the norm before clipping, a scalar on the device; NaN if the step is skipped.
    """
    scaler.unscale_(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    moments = [m for state in optimizer.state.values() for m in state.values() if m.ndim]
    finite = torch.isfinite(norm + 0 * nn.utils.get_total_norm(moments) if moments else norm)
    optimizer.found_inf = world.all_reduce_sum((~finite).float()).clamp(max=1)
    norm = norm.masked_fill(optimizer.found_inf > 0, math.nan)
    if max_norm > 0:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    scaler.update()  # here, not after the step, so that one CUDA graph holds all that the scaler does
    return norm


@torch.no_grad()
def reset_nonfinite(optimizer: torch.optim.Optimizer) -> None:
    """Set non-finite values of the moments to 0: faulty memory may cause them; all later steps would be skipped."""
    for state in optimizer.state.values():
        for moment in state.values():
            moment.nan_to_num_(0.0, 0.0, 0.0)


def grad_norm(module: nn.Module) -> Tensor:
    """The gradient norm of a module, for the log."""
    return nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


# ---- saving


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of the optimizer as named tensors: '<parameter index>.<moment>'."""
    state = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, moments in state.items() for name, tensor in moments.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The inverse of optimizer_tensors."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        state.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, moments in optimizer.state.items():  # the fused kernel needs the strides of the weight
        for name, moment in moments.items():
            if moment.ndim:
                moments[name] = torch.empty_like(weight).copy_(moment)
