"""Distributed training: one process (rank) per device, started by torchrun; a single process needs no launcher."""

import contextlib
import datetime
import os
import socket
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from latentdiff.config import UserError
from latentdiff.training import precision


@dataclass(frozen=True)
class World:
    """This process and its group: `rank` of `size` processes, on `device`. All ranks must call a method, or none."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def all_reduce_sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks; a new tensor if there are several."""
        if self.size > 1:
            x = x.detach().clone()
            dist.all_reduce(x)
        return x

    def all_reduce_mean(self, x: Tensor) -> Tensor:
        """The mean of x over the ranks."""
        return self.all_reduce_sum(x) / self.size

    def all_reduce_max(self, value: int) -> int:
        """The largest value of all ranks; over gloo on the CPU, so that it does not wait for the device."""
        x = torch.tensor(value)
        if self.size > 1:
            dist.all_reduce(x, dist.ReduceOp.MAX)
        return int(x)

    def barrier(self) -> None:
        self.all_reduce_max(0)

    def broadcast_bytes(self, name: str, make: Callable[[], bytes], timeout: float = 24 * 3600) -> bytes:
        """The result of `make`, which only rank 0 calls. `name` must be unique; the others wait `timeout` seconds.

        It goes through the store, because a collective would time out while rank 0 computes.
        """
        if self.is_main:
            content = make()
            if self.size > 1:
                _store().set(name, content)
            return content
        deadline = time.monotonic() + timeout
        while not _store().check([name]):
            if error := _store_text("error/0"):
                raise UserError(error)
            if time.monotonic() > deadline:
                raise UserError(f"rank 0 did not make the {name} in {timeout / 3600:.0f} hours")
            time.sleep(0.1)
        return _store().get(name)

    def to_device(self, module: nn.Module, contiguous: bool = False) -> nn.Module:
        """The module on this rank's device, in the memory format of precision.to_device."""
        return precision.to_device(module, self.device, contiguous)

    def ddp(self, module: nn.Module, **options) -> nn.Module:
        """The module in DistributedDataParallel; with one process, the module itself."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # names deprecated after torch 2.6
            return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **options)

    def no_sync(self, ddp: nn.Module, skip: bool) -> contextlib.AbstractContextManager:
        """A context in which, if `skip`, gradients are not all-reduced: for all micro-batches but the last."""
        return ddp.no_sync() if skip and self.size > 1 else contextlib.nullcontext()

    def shard(self, n: int) -> range:
        """This rank's contiguous block of 0..n-1; the sizes of the blocks differ by at most one."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)


SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


def init_distributed(device: str = "auto", deterministic: bool = False, timeout: float = 30) -> World:
    """Choose the device, set torch's global options and join the process group that torchrun describes, if any.

    Args:
        device: auto, cuda or cpu.
        deterministic: use deterministic algorithms on CUDA.
        timeout: minutes that ranks wait for each other before they raise an error.
    """
    torch.set_flush_denormal(True)  # before threads start, which inherit it: denormals are ten times slower
    torch.set_float32_matmul_precision("high")
    rank, local_rank = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    size = int(os.environ.get("WORLD_SIZE", 1))
    chosen = _choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS
        torch.use_deterministic_algorithms(deterministic)
    if size > 1:
        _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", rank, size, timeout)
        _store().set(f"host/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    return World(rank, size, chosen)


def _choose_device(device: str, local_rank: int) -> torch.device:
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"train.device is {device}, but torch finds no CUDA device; use train.device=cpu or auto")
    if name == "cuda" and local_rank >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local_rank}, but torch sees {torch.cuda.device_count()} CUDA device(s); start at most as "
            f"many processes on a machine (--nproc_per_node), or use train.device=cpu"
        )
    try:
        return torch.device("cuda", local_rank) if name == "cuda" else torch.device(name)
    except RuntimeError as error:
        raise UserError(f"train.device is {device}; it must be auto, cuda or cpu") from error


def _join(backend: str, rank: int, size: int, timeout: float) -> None:
    """Initialise the process group, with a prefix per restart: torchrun keeps its store, with the old addresses.

    The restart counts of several nodes may differ: there it needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    delta = datetime.timedelta(minutes=timeout)
    store, *_ = next(rendezvous("env://", rank, size, timeout=delta))
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else ""
    store = dist.PrefixStore(f"start{count}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=delta)


def destroy() -> None:
    """Destroy the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def reported_by_rank0(text: str, rank: int, local_rank: int, timeout: float = 5) -> bool:
    """Whether rank 0 has the same error within `timeout` seconds, so that this rank need not print it.

    Before the process group exists, local rank 0 of each machine prints it.
    """
    if not dist.is_initialized():
        return local_rank != 0
    try:
        _store().set(f"error/{rank}", text)
        deadline = time.monotonic() + (timeout if rank else 0)
        while time.monotonic() < deadline:
            if _store_text("error/0"):
                return _store_text("error/0") == text
            time.sleep(0.05)
    except RuntimeError:  # rank 0, which holds the store, has exited
        pass
    return False


def diagnose_lost_ranks(error: Exception, timeout: float = 5) -> str | None:
    """Which ranks were lost, and why, if that caused the error; None if the error is this rank's own.

    Only the first remaining rank returns the text, and the others "", so that it is printed once.
    """
    if not dist.is_initialized():
        return None
    rank, size, text = dist.get_rank(), dist.get_world_size(), str(error)
    if not isinstance(error, dist.DistError) and not any(w in text for w in ("gloo", "NCCL", "Connection", "Socket")):
        reported_by_rank0(f"{type(error).__name__}: {text}", rank, 0, timeout=0)
        return None
    try:
        alive, lost = _roll_call(rank, size, timeout)
        if alive[0] != rank:
            return ""
        default = "no answer in time (train.timeout)" if "imed out" in text else "exited without an error (killed?)"
        reasons = {r: _store_text(f"error/{r}") or default for r in lost}
        return "; ".join(f"rank {r} ({_store_text(f'host/{r}')}): {reasons[r]}" for r in lost) or text
    except RuntimeError:  # rank 0 holds the store
        return "rank 0 has exited"


def _roll_call(rank: int, size: int, timeout: float) -> tuple[list[int], list[int]]:
    """The ranks that are alive after the loss of another, including this one, and the lost ranks."""
    _store().set(f"alive/{rank}", "")
    deadline = time.monotonic() + timeout
    while True:
        alive = [r for r in range(size) if _store().check([f"alive/{r}"])]
        failed = [r for r in range(size) if r not in alive and _store().check([f"error/{r}"])]
        if len(alive) + len(failed) == size or time.monotonic() > deadline:
            return alive, [r for r in range(size) if r not in alive]
        time.sleep(0.1)


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def _store_text(key: str) -> str:
    return _store().get(key).decode() if _store().check([key]) else ""
