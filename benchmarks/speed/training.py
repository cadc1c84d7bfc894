"""The U-Net's training step: forward, backward, optimiser and average, on the same numbers."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import machine, networks
from benchmarks.speed.race import Contestant, Spread, Turn, clock, race, ratio
from benchmarks.speed.work import Bar, Row, Work, on_gpu, once, row, times
from latentdiff.training import optim
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import init_distributed
from latentdiff.training.precision import autocast
from latentdiff.training.settings import TrainConfig
from latentdiff.training.state import TrainState

TRAIN = TrainConfig(lr=1e-4, ema_decay=0.9999, grad_clip=1.0)


def ours(done, size: str, steps: int = 1, compiled: bool = False, graph: bool = False, **changes) -> None:
    """What train_diffusion.py does between two batches; changes: of the size."""
    done.settled()
    chosen, world = replace(networks.sizes()[size], **changes), init_distributed()
    device = world.device
    unet = world.to_device(networks.ours(chosen), contiguous=True)
    learner, parallel = (
        TrainState(unet, replace(TRAIN, cuda_graph=graph), world),
        world.ddp(unet, broadcast_buffers=False),
    )
    if compiled:
        unet.compile()
    z_t, target, t, cond = networks.inputs(chosen, device)

    def walk(z_t: Tensor, target: Tensor, t: Tensor) -> Tensor:
        with learner.autocast():
            loss = (parallel(z_t, t, cond).to(z_t.dtype) - target).square().flatten(1).mean(1).mean()
        optim.backward(loss, learner.scaler)
        return loss

    walk, step = CudaGraph(walk, unet.parameters()) if graph else walk, 0
    while True:
        for _ in range(steps):
            loss = walk(z_t, target, t)
            learner.step(step)
            step += 1
        done(loss=loss.item(), images=steps * chosen.batch)


def theirs(done, size: str, steps: int = 1, compiled: bool = False) -> None:
    """The part of diffusers' text-to-image example from the U-Net on, in its order: prediction, loss, backward, clipped
    norm, AdamW, gradients to None, EMAModel. As there, AdamW and EMAModel are as they come and the loss is read at
    every step."""
    from diffusers.training_utils import EMAModel

    done.settled()
    chosen, device = networks.sizes()[size], machine.device()
    unet = networks.theirs(networks.ours(chosen), chosen.latent).to(device).train()
    ema = EMAModel(unet.parameters(), decay=TRAIN.ema_decay)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=TRAIN.lr, betas=TRAIN.betas, weight_decay=TRAIN.weight_decay)
    if compiled:
        unet.compile()
    z_t, target, t, cond = networks.inputs(chosen, device)
    told = () if cond.context is None else (cond.context,)
    while True:
        for _ in range(steps):
            with autocast(device, machine.dtype()):
                prediction = unet(z_t, t, *told).sample
            loss = F.mse_loss(prediction.float(), target.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), TRAIN.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            said = loss.item()
        done(loss=said, images=steps * chosen.batch)


def limit(done, size: str) -> None:
    """How fast the machine multiplies matrices, and the FLOPs of a step."""
    chosen, device = networks.sizes()[size], machine.device()
    unet = networks.ours(chosen).to(device)
    z_t, target, t, cond = networks.inputs(chosen, device)
    with FlopCounterMode(display=False) as counter:
        (unet(z_t, t, cond) - target).square().mean().backward()
    sides = (512, 1024, 2048) if device.type == "cpu" else (4096, 8192)
    while True:
        done(rate=max(map(machine.matrix_rate, sides)), flops=counter.get_total_flops())


# ---- works


def work(name: str, size: str, says: str, bars: dict[str, Bar], steps: int = 1, gpu: bool = False) -> Work:
    def measure(share: float) -> list[Row]:
        told = {"size": size, "steps": steps}
        field = {"ours": Contestant("training:ours", told), "diffusers": Contestant("training:theirs", told),
                 "limit": Contestant("training:limit", {"size": size})}  # fmt: skip
        if on_gpu():
            warm, compiled = {"warm_up": 5}, {"compiled": True}
            field["ours"] = Contestant("training:ours", told | warm | {"graph": True} | (compiled if gpu else {}))
            field["diffusers, compiled"] = Contestant("training:theirs", told | warm | compiled)
        return rows(race(field, times(15, share)), steps)

    return Work(name, says, measure, bars, gpu)


def rows(turns: dict[str, list[Turn]], steps: int) -> list[Row]:
    ours, peak = turns["ours"], max(turn["rate"] for turn in turns["limit"])
    shares = [100 * steps * turns["limit"][0]["flops"] / turn[clock()] / peak for turn in ours]
    found = [
        row("against diffusers", ratio(turns["diffusers"], ours)),
        row("share of the matrix peak", Spread.of(shares), "%"),
        row("diffusers' memory against ours", ratio(turns["diffusers"], ours, "memory")),
    ]
    if on_gpu():
        found.append(row("against diffusers compiled", ratio(turns["diffusers, compiled"], ours)))
        found.append(row("images per second", Spread.of([t["images"] / t["seconds"] for t in ours]), "1/s"))
        found.append(once("memory", max(turn["memory"] for turn in ours), "MB"))
    return found


STEP = {"against diffusers": Bar(1.15, 1.5), "against diffusers compiled": Bar(None, 1.1)}
WORKS = [
    work("step-demo", "demo", "U-Net training step, the demo's size, batch 32", STEP, steps=3),
    work("step-churches", "churches/4", "U-Net training step, churches at 1/4 width, batch 4", STEP),
    work("step-cin256", "cin256", "U-Net training step, cin256 (395M), batch 32",
         STEP | {"share of the matrix peak": Bar(None, 45)}, gpu=True),
    work("step-txt2img", "txt2img", "U-Net training step, txt2img (872M), batch 32", STEP, gpu=True),
]  # fmt: skip
