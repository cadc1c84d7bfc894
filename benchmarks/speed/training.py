"""The U-Net's training step on fixed inputs: forward, backward, optimizer and EMA."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.speed import machine, networks
from benchmarks.speed.benchmark import Benchmark, Measurement, Target, on_gpu, scaled, single, spread
from benchmarks.speed.interleave import Implementation, Repeat, Spread, interleave, ratio, time_key
from latentdiff.training import optim
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import init_distributed
from latentdiff.training.precision import autocast
from latentdiff.training.settings import TrainConfig
from latentdiff.training.state import TrainState

TRAIN = TrainConfig(lr=1e-4, ema_decay=0.9999, grad_clip=1.0)


def run_latentdiff(
    record, size: str, steps: int = 1, compiled: bool = False, cuda_graph: bool = False, **changes
) -> None:  # fmt: skip
    """What train_diffusion.py does between two batches; changes: of the fields of the size."""
    record.reset_memory()
    chosen, world, cfg = (
        replace(networks.sizes()[size], **changes),
        init_distributed(),
        replace(TRAIN, cuda_graph=cuda_graph),
    )
    unet = world.to_device(networks.latentdiff_unet(chosen), contiguous=True)
    state, ddp = TrainState(unet, cfg, world), world.ddp(unet, broadcast_buffers=False)
    if compiled:
        unet.compile()
    z_t, target, t, cond = networks.inputs(chosen, world.device)

    def forward_backward(z_t: Tensor, target: Tensor, t: Tensor) -> Tensor:
        with state.autocast():
            loss = (ddp(z_t, t, cond).to(z_t.dtype) - target).square().flatten(1).mean(1).mean()
        state.scaler.scale(loss).backward()
        return loss

    if cuda_graph:
        forward_backward = CudaGraph(forward_backward, unet.parameters())
    while True:
        for _ in range(steps):
            loss = forward_backward(z_t, target, t)
            optim.set_lr(state.optimizer, optim.lr_at(cfg, state.step))
            grad_norm = state.clip_grad_norm_()
            state.optimizer.step()
            state.ema.update(state.step, grad_norm)
            state.optimizer.zero_grad(set_to_none=True)
            state.end_step()
        record(loss=loss.item(), images=steps * chosen.batch)


def run_diffusers(record, size: str, steps: int = 1, compiled: bool = False) -> None:
    """The part of diffusers' text-to-image example after the U-Net's inputs, in the same order: prediction, loss,
    backward, gradient clipping, AdamW, zero_grad, EMAModel. As there, AdamW and EMAModel have their default
    implementation and the loss is read at every step."""
    from diffusers.training_utils import EMAModel

    record.reset_memory()
    chosen, device = networks.sizes()[size], machine.device()
    unet = networks.diffusers_unet(networks.latentdiff_unet(chosen), chosen.latent).to(device).train()
    ema = EMAModel(unet.parameters(), decay=TRAIN.ema_decay)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=TRAIN.lr, betas=TRAIN.betas, weight_decay=TRAIN.weight_decay)
    if compiled:
        unet.compile()
    z_t, target, t, cond = networks.inputs(chosen, device)
    context = () if cond.context is None else (cond.context,)
    while True:
        for _ in range(steps):
            with autocast(device, machine.dtype()):
                prediction = unet(z_t, t, *context).sample
            loss = F.mse_loss(prediction.float(), target.float())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(unet.parameters(), TRAIN.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            ema.step(unet.parameters())
            train_loss = loss.item()
        record(loss=train_loss, images=steps * chosen.batch)


def run_matmul(record, size: str) -> None:
    """Peak FLOP/s of matrix products, and the FLOPs of a training step."""
    chosen, device = networks.sizes()[size], machine.device()
    unet = networks.latentdiff_unet(chosen).to(device)
    z_t, target, t, cond = networks.inputs(chosen, device)
    with FlopCounterMode(display=False) as counter:
        (unet(z_t, t, cond) - target).square().mean().backward()
    sides = (512, 1024, 2048) if device.type == "cpu" else (4096, 8192)
    while True:
        peak = max(map(machine.matmul_flops_per_second, sides))
        record(flops_per_second=peak, flops=counter.get_total_flops())


# ---- benchmarks


def benchmark(
    name: str, size: str, description: str, targets: dict[str, Target], steps: int = 1, gpu_only: bool = False
) -> Benchmark:  # fmt: skip
    def measure(repeats: float) -> list[Measurement]:
        options = {"size": size, "steps": steps}
        implementations = {
            "latentdiff": Implementation("training:run_latentdiff", options),
            "diffusers": Implementation("training:run_diffusers", options),
            "matmul": Implementation("training:run_matmul", {"size": size}),
        }
        if on_gpu():
            warm_up, compiled = {"warm_up": 5}, {"compiled": True}
            graph = options | warm_up | {"cuda_graph": True} | (compiled if gpu_only else {})
            implementations["latentdiff"] = Implementation("training:run_latentdiff", graph)
            implementations["compiled"] = Implementation("training:run_diffusers", options | warm_up | compiled)
        return measurements(interleave(implementations, scaled(15, repeats)), steps)

    return Benchmark(name, description, measure, targets, gpu_only)


def measurements(results: dict[str, list[Repeat]], steps: int) -> list[Measurement]:
    latentdiff, peak = results["latentdiff"], max(repeat["flops_per_second"] for repeat in results["matmul"])
    utilization = [100 * steps * results["matmul"][0]["flops"] / repeat[time_key()] / peak for repeat in latentdiff]
    result = [
        spread(SPEEDUP, ratio(results["diffusers"], latentdiff)),
        spread(UTILIZATION, Spread.of(utilization), "%"),
        spread("memory, diffusers / latentdiff", ratio(results["diffusers"], latentdiff, "memory")),
    ]
    if on_gpu():
        images_per_second = Spread.of([repeat["images"] / repeat["seconds"] for repeat in latentdiff])
        result.append(spread(COMPILED_SPEEDUP, ratio(results["compiled"], latentdiff)))
        result.append(spread("images per second", images_per_second, "1/s"))
        result.append(single("peak memory", max(repeat["memory"] for repeat in latentdiff), "MB"))
    return result


SPEEDUP, COMPILED_SPEEDUP = "speedup over diffusers", "speedup over compiled diffusers"
UTILIZATION = "FLOP/s, of the peak of matrix products"
TARGETS = {SPEEDUP: Target(1.15, 1.5), COMPILED_SPEEDUP: Target(None, 1.1)}
BENCHMARKS = [
    benchmark("step-demo", "demo", "U-Net training step, demo size, batch size 32", TARGETS, steps=3),
    benchmark("step-churches", "churches/4", "U-Net training step, churches at 1/4 width, batch size 4", TARGETS),
    benchmark("step-cin256", "cin256", "U-Net training step, cin256 (395M parameters), batch size 32",
              TARGETS | {UTILIZATION: Target(None, 45)}, gpu_only=True),
    benchmark("step-txt2img", "txt2img", "U-Net training step, txt2img (872M parameters), batch size 32", TARGETS,
              gpu_only=True),
]  # fmt: skip
