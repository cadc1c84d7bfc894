"""Run by the tests, alone or under torchrun: a training script that also leaves every rank's weights and loss.

ranks.py NAME words...      in the environment FLOAT64=1: all of stage two in float64;
                            FAULT=raise|kill|hang: what befalls rank 1 after 5 steps, at the first start
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


def train_and_keep(r, world, parts, *servants) -> None:
    train(r, world, parts, *servants)
    learner, folder = getattr(parts, "learner", parts), servants[-1].folder
    loss = world.all_reduce_mean(torch.tensor(losses, dtype=torch.float64))  # equal shares of the batch
    checkpoint.write_tensors(folder / f"model{world.rank}.safetensors", learner.model.state_dict())
    checkpoint.write_tensors(folder / f"ema{world.rank}.safetensors", learner.ema.model.state_dict())
    checkpoint.write_tensors(folder / f"loss{world.rank}.safetensors", {"loss": loss})


def add_and_keep(log: Log, **values) -> None:
    """The loss as it is; metrics.jsonl rounds it to six digits."""
    losses.extend(values[name].item() for name in ("loss", "nll") if name in values)
    add(log, **values)


def report_or_fail(log: Log, step: int, **values):
    if step == 6 and log.world.rank == 1 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        if os.environ["FAULT"] == "raise":
            raise ValueError("unwell")
        if os.environ["FAULT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # torchrun would wait 30 s for us
        time.sleep(600)
    return report(log, step, **values)


def spoil() -> None:
    backward, step, count = optim.backward, optim.step, Counter()

    def bad_loss(loss, scaler):
        count["loss"] += 1
        backward(loss * math.nan if count["loss"] == 3 else loss, scaler)

    def bad_gradient(optimizer, *rest):
        count["gradient"] += 1
        if count["gradient"] == 5:
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = math.nan
        return step(optimizer, *rest)

    if os.environ["RANK"] == "1":
        optim.backward, optim.step = bad_loss, bad_gradient


def in_float64() -> None:
    rng.normal = functools.partial(rng.normal, dtype=torch.float64)
    made, called = build.build_diffusion, BatchEncoder.__call__
    build.build_diffusion = lambda *args: doubled(made(*args))
    BatchEncoder.__call__ = lambda *args: tuple(x.double() if torch.is_tensor(x) else x for x in called(*args))


def doubled(model: torch.nn.Module) -> torch.nn.Module:
    """Its layers take what is float32 by design, such as the embedding of t, as well."""
    for layer in model.double().modules():
        if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d):
            layer.register_forward_pre_hook(lambda _, args: tuple(x.double() for x in args))
    return model


stage.train, Log.add = train_and_keep, add_and_keep
if os.environ.get("FAULT") == "nan":
    spoil()
elif os.environ.get("FAULT"):
    Log.report = report_or_fail
if os.environ.get("FLOAT64"):
    in_float64()
cli.run(stage.main)
