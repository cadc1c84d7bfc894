"""The machine: its facts, the memory of this process, and the peak speed of matrix products."""

import importlib
import os
import platform
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from latentdiff.training.distributed import init_distributed
from latentdiff.training.precision import precision

MB = 2**20


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def dtype() -> torch.dtype:
    """The default precision of training on this machine."""
    return precision("auto", device())


def set_up() -> None:
    """As at the start of a script; imports here what the first optimizer step would import."""
    importlib.import_module("torch._dynamo")

    init_distributed()
    torch.manual_seed(0)


def facts() -> dict[str, object]:
    on_gpu = device().type == "cuda"
    return {
        "processor": torch.cuda.get_device_name() if on_gpu else cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "clock": "seconds" if on_gpu else os.environ.get("LATENTDIFF_BENCH_CLOCK", "seconds"),
        "precision": str(dtype()).removeprefix("torch."),
        "torch": torch.__version__,
        "diffusers": diffusers_version(),
        "python": platform.python_version(),
    }


def cpu() -> str:
    try:
        match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    features = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    return ", ".join([match[1] if match else platform.processor(), *features])


def diffusers_version() -> str:
    try:
        from importlib.metadata import version

        return version("diffusers")
    except ImportError:
        return "none"


def synchronize() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


# ---- memory, in MB: of this process on CPUs, of torch's tensors on a GPU


def resident() -> float:
    return torch.cuda.memory_allocated() / MB if device().type == "cuda" else _status("VmRSS")


def peak() -> float:
    """The peak since `reset_peak`."""
    return torch.cuda.max_memory_allocated() / MB if device().type == "cuda" else _status("VmHWM")


def reset_peak() -> None:
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(match[1]) / 1024


# ---- peak speed


def matmul_flops_per_second(size: int = 1024) -> float:
    """FLOP/s of the product of two square matrices, in the precision of training."""
    a, b = (torch.randn(size, size, device=device(), dtype=dtype()) for _ in range(2))
    multiply(a, b, 2)
    on_cpu = device().type == "cpu"
    clock, count = (time.process_time, 4) if on_cpu and torch.get_num_threads() == 1 else (time.perf_counter, 50)
    start = clock()
    multiply(a, b, count)
    return count * 2 * size**3 / (clock() - start)


def multiply(a: Tensor, b: Tensor, count: int) -> None:
    for _ in range(count):
        a @ b
    synchronize()
