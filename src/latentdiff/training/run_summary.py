"""The screen that a training run opens with: what will happen."""

import torch
from torch import nn

from latentdiff import recipe
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training.distributed import World
from latentdiff.training.log import Log, plan
from latentdiff.training.precision import precision
from latentdiff.training.settings import TrainConfig


def opening(
    r: AutoencoderRecipe | DiffusionRecipe, log: Log, data, held_out, autoencoder: nn.Module,
    parts: dict[str, nn.Module], **facts: str,
) -> str:  # fmt: skip
    """What both stages say, and the `facts` of one of them; parts: what trains, by name."""
    t, world = r.train, log.world
    (height, width), f = recipe.size_of(r), autoencoder.factor
    shape = f"{autoencoder.z_channels} x {height // f} x {width // f} (f = {f})"
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    return plan({
        "run": f"{log.folder}" + (f", resumed at step {log.first}" if log.first else ""),
        "data": f"{len(data):,} to train on, {len(held_out):,} held out, {height} x {width}{left_out(data)}",
        "latent": f"{shape}, {facts.pop('latent')}",
        "parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size),
        **facts,
        "batch": batch(t, world),
        "rate": rate(t),
        "steps": f"{t.steps:,}, {t.steps * t.batch_size / len(data):.3g} times through the data; "
                 f"a checkpoint every {t.checkpoint_every:,}",
        "device": device(t, world),
    })  # fmt: skip


def left_out(data) -> str:
    """What of a folder is not used, as far as its names tell."""
    bad, orphans = (len(getattr(data, name, ())) for name in ("bad", "orphans"))
    words = f"; {bad:,} that the metadata names cannot be used" if bad else ""
    return words + (f"; {orphans:,} that no metadata names are left out" if orphans else "")


def batch(t: TrainConfig, world: World) -> str:
    pieces = world.size * t.grad_accum_steps
    if pieces == 1:
        return f"{t.batch_size}"
    return f"{t.batch_size} in all: {world.size} rank(s) x {t.grad_accum_steps} piece(s) x {t.batch_size // pieces}"


def rate(t: TrainConfig) -> str:
    """The rate is what the recipe says, whatever the batch."""
    end = "" if t.lr_schedule == "constant" else f" to {t.lr * t.lr_end:g}"
    warmup = f" after {t.warmup_steps} steps of warm-up" if t.warmup_steps else ""
    return f"{t.lr:g}{warmup}, {t.lr_schedule}{end}; not scaled by the batch"


def device(t: TrainConfig, world: World) -> str:
    kind = str(precision(t.precision, world.device)).removeprefix("torch.")
    if world.device.type == "cuda":
        return f"{torch.cuda.get_device_name(world.device)}, {kind}"
    return f"{world.device}, {kind}, {torch.get_num_threads()} thread(s)"
