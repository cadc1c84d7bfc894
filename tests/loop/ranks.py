"""Run by the tests, with or without torchrun: a training script that also saves the weights and loss of every rank.

ranks.py NAME argv...       in the environment FLOAT64=1: all of stage two in float64;
                            FAULT=raise|kill|hang: failure of rank 1 after 5 steps, at the first start
"""

import functools
import math
import os
import signal
import sys
import time
from collections import Counter

import torch
from conftest import script

from latentdiff import build, cli, rng
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import checkpoint, optim
from latentdiff.training.log import Log

stage = script(sys.argv.pop(1))
train, add, report, losses = stage.train, Log.add, Log.report, []


def train_and_save(recipe, world, state, *args) -> None:
    train(recipe, world, state, *args)
    state, folder = getattr(state, "autoencoder", state), args[-1].folder
    loss = world.all_reduce_mean(torch.tensor(losses, dtype=torch.float64))  # all ranks have equally many samples
    checkpoint.write_tensors(folder / f"model{world.rank}.safetensors", state.model.state_dict())
    checkpoint.write_tensors(folder / f"ema{world.rank}.safetensors", state.ema.model.state_dict())
    checkpoint.write_tensors(folder / f"loss{world.rank}.safetensors", {"loss": loss})


def add_and_record(log: Log, **values) -> None:
    """Record the exact loss; metrics.jsonl rounds it to six digits."""
    losses.extend(values[name].item() for name in ("loss", "nll") if name in values)
    add(log, **values)


def report_or_fail(log: Log, step: int, **values):
    if step == 6 and log.world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["FAULT"] == "raise":
            raise ValueError("failure of rank 1")
        if os.environ["FAULT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun would wait 30 s for this process
        time.sleep(600)
    return report(log, step, **values)


def inject_nan() -> None:
    scale, clip, count = torch.amp.GradScaler.scale, optim.clip_grad_norm_, Counter()

    def bad_loss(scaler, loss):
        count["loss"] += 1
        return scale(scaler, loss * math.nan if count["loss"] == 3 else loss)

    def bad_gradient(optimizer, *rest):
        count["gradient"] += 1
        if count["gradient"] == 5:
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = math.nan
        return clip(optimizer, *rest)

    if os.environ["RANK"] == "1":
        torch.amp.GradScaler.scale, optim.clip_grad_norm_ = bad_loss, bad_gradient


def in_float64() -> None:
    rng.normal = functools.partial(rng.normal, dtype=torch.float64)
    build_diffusion, encode = build.build_diffusion, BatchEncoder.__call__
    build.build_diffusion = lambda *args: to_float64(build_diffusion(*args))
    BatchEncoder.__call__ = lambda *args: tuple(x.double() if torch.is_tensor(x) else x for x in encode(*args))


def to_float64(model: torch.nn.Module) -> torch.nn.Module:
    """Convert a model, whose layers also accept tensors that are float32 by design, such as the embedding of t."""
    for layer in model.double().modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args: tuple(x.double() for x in args))
    return model


stage.train, Log.add = train_and_save, add_and_record
if os.environ.get("FAULT") == "nan":
    inject_nan()
elif os.environ.get("FAULT"):
    Log.report = report_or_fail
if os.environ.get("FLOAT64"):
    in_float64()
cli.run(stage.main)
