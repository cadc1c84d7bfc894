"""The optimiser's step: the rate as a function of the step, one fused AdamW, and no bad step ever."""

import math

import torch
from torch import Tensor, nn

from latentdiff.training import muon
from latentdiff.training.distributed import SINGLE_PROCESS, World
from latentdiff.training.precision import precision
from latentdiff.training.settings import TrainConfig


def rate(train: TrainConfig, step: int) -> float:
    """The learning rate at a step counted from 0: warm-up, full for a while, then constant, cosine or linear."""
    if step < train.warmup_steps:
        start = train.lr_start
        return train.lr * (
            start + (1 - start) * step / train.warmup_steps if start else (step + 1) / train.warmup_steps
        )
    end = train.lr_decay_end or train.steps
    begin = max(train.warmup_steps, round(train.lr_decay_start * end))
    done = min(1.0, max(0, step - begin) / max(1, end - begin))
    share = {"constant": 1.0, "cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done}[train.lr_schedule]
    floor = 1.0 if train.lr_schedule == "constant" else train.lr_end
    return train.lr * (floor + (1 - floor) * share)


def build(module: nn.Module, train: TrainConfig) -> torch.optim.AdamW:
    """train.optimizer over what trains in `module`: AdamW (Loshchilov & Hutter 2019), fused, one kernel per type and
    thrice as fast, or Muon."""
    weights = [p for p in module.parameters() if p.requires_grad]
    turned = {id(p) for p in muon.hidden(module)} if train.optimizer == "muon" else set()
    groups = [
        {"params": [p for p in weights if id(p) in turned], "weight_decay": train.weight_decay, "orthogonal": True},
        {"params": [p for p in weights if p.ndim >= 2 and id(p) not in turned], "weight_decay": train.weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups, device = [g for g in groups if g["params"]], weights[0].device
    half = precision(train.precision, device) == torch.bfloat16  # float16 has no room for small gradients
    options = {"fused": True, "capturable": train.cuda_graph and device.type == "cuda"}
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, train.lr, tuple(train.betas), **options)
    return muon.Muon(groups, train.lr, tuple(train.betas), torch.bfloat16 if half else torch.float32, **options)


def step(
    optimizer: torch.optim.Optimizer,
    train: TrainConfig,
    lr: float | Tensor,
    scaler: torch.amp.GradScaler | None = None,
    world: World = SINGLE_PROCESS,
) -> Tensor:
    """One step, clipped; returns the gradient norm before clipping, a tensor on the device, NaN for a bad step.

    A gradient or moment that is not finite, on whichever rank, changes nothing, neither weights nor moments: the fused
    kernel is told through `found_inf`, so the host never waits. fp16's scaler is only asked for the scale.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    if scaler is not None:
        scaler.unscale_(optimizer)
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients)
    found_inf = world.sum((~torch.isfinite(norm + 0 * norm_of_moments(optimizer))).float()).clamp(max=1)
    norm = norm.masked_fill(found_inf > 0, math.nan)
    if train.grad_clip > 0:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grads_with_norm_(parameters, train.grad_clip, norm)
    optimizer.found_inf = found_inf
    optimizer.step()
    del optimizer.found_inf
    if scaler is not None:
        scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return norm


def norm_of_moments(optimizer: torch.optim.Optimizer) -> Tensor | float:
    moments = [m for named in optimizer.state.values() for m in named.values() if m.ndim]
    return torch.nn.utils.get_total_norm(moments) if moments else 0.0


@torch.no_grad()
def mend(optimizer: torch.optim.Optimizer) -> None:
    """Moments that are not finite begin anew. Ours never become so; memory that fails makes them so, for good."""
    for named in optimizer.state.values():
        for moment in named.values():
            moment.nan_to_num_(0.0, 0.0, 0.0)


def norm_of(module: nn.Module) -> Tensor:
    """The gradient norm of one component, for the log."""
    return torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])


def backward(loss: Tensor, scaler: torch.amp.GradScaler | None) -> None:
    (loss if scaler is None else scaler.scale(loss)).backward()


def scale(scaler: torch.amp.GradScaler | None) -> float:
    """What a loss is multiplied by so that its fp16 gradients do not underflow."""
    return 1.0 if scaler is None else scaler.get_scale()


def fp16_scaler(train: TrainConfig, device: torch.device) -> torch.amp.GradScaler | None:
    """fp16 gradients underflow without a scaler; no other type needs one."""
    if precision(train.precision, device) != torch.float16:
        return None
    scaler = torch.amp.GradScaler(device.type)
    scaler.scale(torch.zeros((), device=device))  # it has no scale before its first use
    return scaler


# ---- saving


def state_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as named tensors: '<parameter index>.<moment>'."""
    moments = optimizer.state_dict()["state"]
    return {f"{index}.{name}": tensor for index, named in moments.items() for name, tensor in named.items()}


def state(scaler: torch.amp.GradScaler | None) -> dict:
    """What of the optimisation is no tensor."""
    return {"scaler": scaler.state_dict()} if scaler is not None else {}


def load_state(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler | None, tensors: dict[str, Tensor], state: dict
) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        index, moment = name.split(".")
        moments.setdefault(int(index), {})[moment] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, named in optimizer.state.items():  # the fused kernel walks weight and moment side by side in memory
        for name, moment in named.items():
            if moment.ndim:
                named[name] = torch.empty_like(weight).copy_(moment)
    if scaler is not None and "scaler" in state:
        scaler.load_state_dict(state["scaler"])
