"""The summary that a training run prints first: data, parameters, batch size, learning rate, steps and device."""

from typing import Any

import torch
from torch import nn

from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.precision import precision
from latentdiff.training.settings import TrainConfig


def run_summary(
    recipe: Any, log: Log, start_step: int, data, val_data, image_size: tuple[int, int], autoencoder: nn.Module,
    networks: dict[str, nn.Module], **facts: str,
) -> str:  # fmt: skip
    """The summary of a run of either stage, one fact per line.

    Args:
        start_step: the step from which the run resumes, or 0.
        image_size: height and width in pixels.
        networks: the trained networks by name.
        facts: further lines by label; `latent` is appended to the shape of the latents.
    """
    cfg, (height, width), f = recipe.train, image_size, autoencoder.factor
    sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
    lines = {
        "run": f"{log.folder}" + (f", resumed at step {start_step}" if start_step else ""),
        "data": f"{len(data):,} training, {len(val_data):,} validation images, {height} x {width}{unused(data)}",
        "latent": f"{autoencoder.z_channels} x {height // f} x {width // f} (f = {f}), {facts.pop('latent')}",
        "parameters": ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size),
        **facts,
        "batch": batch(cfg, log.world),
        "lr": lr(cfg),
        "steps": f"{cfg.steps:,} ({cfg.steps * cfg.batch_size / len(data):.3g} epochs), "
                 f"a checkpoint every {cfg.checkpoint_every:,}",
        "device": device(cfg, log.world),
    }  # fmt: skip
    return "\n".join(f"  {label:<13} {fact}" for label, fact in lines.items())


def unused(data) -> str:
    """How many images of the data folder are not used."""
    attributes = {"unreadable or missing": "unreadable", "not listed in the metadata": "unlisted"}
    counts = {reason: len(getattr(data, name, ())) for reason, name in attributes.items()}
    text = ", ".join(f"{count:,} {reason}" for reason, count in counts.items() if count)
    return f"; {text}" if text else ""


def batch(cfg: TrainConfig, world: World) -> str:
    """The batch size and how it is divided."""
    micro_batches = world.size * cfg.grad_accum_steps
    if micro_batches == 1:
        return f"{cfg.batch_size}"
    size = cfg.batch_size // micro_batches
    return f"{cfg.batch_size} = {world.size} processes x {cfg.grad_accum_steps} gradient accumulation steps x {size}"


def lr(cfg: TrainConfig) -> str:
    """The learning rate and its schedule."""
    warmup = f", warm-up {cfg.warmup_steps} steps" if cfg.warmup_steps else ""
    decay = "constant" if cfg.lr_schedule == "constant" else f"{cfg.lr_schedule} decay to {cfg.lr * cfg.lr_end:.3g}"
    return f"{cfg.lr:g}{warmup}, {decay}; the learning rate is never scaled by the batch size"


def device(cfg: TrainConfig, world: World) -> str:
    """The device and the dtype of autocast."""
    dtype = str(precision(cfg.precision, world.device)).removeprefix("torch.")
    if world.device.type == "cuda":
        return f"{torch.cuda.get_device_name(world.device)}, {dtype}"
    return f"{world.device}, {dtype}, {torch.get_num_threads()} threads"
