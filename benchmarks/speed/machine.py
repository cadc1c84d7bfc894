"""The machine: its facts, its memory, its clock and its limit."""

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
    """What training computes in here unless it is told otherwise."""
    return precision("auto", device())


def begin() -> None:
    """As the scripts begin; what the first optimiser's step would import is imported."""
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
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    features = [name for name, has in torch.cpu.get_capabilities().items() if has is True and "bf16" in name]
    return ", ".join([found[1] if found else platform.processor(), *features])


def diffusers_version() -> str:
    try:
        from importlib.metadata import version

        return version("diffusers")
    except ImportError:
        return "none"


def synchronise() -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


# ---- memory, in MB: of this process on CPUs, of torch's tensors on a GPU


def resident() -> float:
    return torch.cuda.memory_allocated() / MB if device().type == "cuda" else _status("VmRSS")


def peak() -> float:
    """The most since `forget_peak`."""
    return torch.cuda.max_memory_allocated() / MB if device().type == "cuda" else _status("VmHWM")


def forget_peak() -> None:
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) / 1024


# ---- the limit


def matrix_rate(size: int = 1024) -> float:
    """FLOPs per second of the product of two square matrices, in the type that training computes in."""
    a, b = (torch.randn(size, size, device=device(), dtype=dtype()) for _ in range(2))
    product(a, b, 2)
    on_cpu = device().type == "cpu"
    clock, count = (time.process_time, 4) if on_cpu and torch.get_num_threads() == 1 else (time.perf_counter, 50)
    began = clock()
    product(a, b, count)
    return count * 2 * size**3 / (clock() - began)


def product(a: Tensor, b: Tensor, count: int) -> None:
    for _ in range(count):
        a @ b
    synchronise()
