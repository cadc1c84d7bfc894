"""The ranks that train together: who am I, what do we share. One process needs no launcher."""

import contextlib
import datetime
import os
import socket
import time
import warnings
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
    """rank of `size` ranks, on `device`. Every method is called by all ranks or by none."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """The mean of x over the ranks."""
        return self.sum(x) / self.size

    def sum(self, x: Tensor) -> Tensor:
        """The sum of x over the ranks, a new tensor."""
        if self.size > 1:
            x = x.detach().clone()
            dist.all_reduce(x)
        return x

    def barrier(self) -> None:
        self.agree(0)

    def share(self, name: str, make, patience: float = 24 * 3600) -> bytes:
        """Bytes that rank 0 makes and all ranks get, through the store: slow work trips no watchdog."""
        if self.is_main:
            made = make()
            if self.size > 1:
                _store().set(name, made)
            return made
        until = time.monotonic() + patience
        while not _store().check([name]):
            if _word("reason/0") or time.monotonic() > until:
                raise UserError(_word("reason/0") or f"rank 0 did not make the {name} in {patience / 3600:.0f} hours")
            time.sleep(0.1)
        return _store().get(name)

    def agree(self, asked: int) -> int:
        """The largest of what the ranks ask for; over the CPUs, so that no device is waited for."""
        answer = torch.tensor(asked)
        if self.size > 1:
            dist.all_reduce(answer, dist.ReduceOp.MAX)
        return int(answer)

    def place(self, module: nn.Module, plain: bool = False) -> nn.Module:
        return precision.place(module, self.device, plain)

    def parallel(self, module: nn.Module, **options) -> nn.Module:
        """The module, averaged over ranks in its backward pass; with one rank, the module itself."""
        if self.size == 1:
            return module
        ids = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings(category=FutureWarning, action="ignore"):  # of names that come after torch 2.6's
            return DistributedDataParallel(module, device_ids=ids, gradient_as_bucket_view=True, **options)

    def no_sync(self, parallel: nn.Module, skip: bool):
        """A context in which gradients are not averaged: for all but the last piece of a batch."""
        return parallel.no_sync() if skip and self.size > 1 else contextlib.nullcontext()

    def share_of(self, n: int) -> range:
        """This rank's share of 0..n-1, in contiguous blocks that differ by one at most."""
        return range(self.rank * n // self.size, (self.rank + 1) * n // self.size)


SINGLE_PROCESS = World(0, 1, torch.device("cpu"))


def start(device: str = "auto", deterministic: bool = False, timeout: float = 30) -> World:
    """Join the world that torchrun describes in the environment, or be alone. Call before any other tensor is made.

    timeout: minutes that ranks wait for one another before they end with an error.
    """
    torch.set_flush_denormal(True)  # threads that start later inherit it; a denormal costs tens of times a normal
    torch.set_float32_matmul_precision("high")
    rank, size, local = (int(os.environ.get(name, default)) for name, default in
                         (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))  # fmt: skip
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"train.device={device}, but torch sees no CUDA device here; use train.device=cpu or auto")
    if kind == "cuda" and local >= torch.cuda.device_count():
        raise UserError(
            f"LOCAL_RANK is {local}, but torch sees {torch.cuda.device_count()} CUDA device(s) here; start at most as "
            f"many ranks on a machine (--nproc_per_node), or train.device=cpu"
        )
    try:
        chosen = torch.device("cuda", local) if kind == "cuda" else torch.device(kind)
    except RuntimeError as error:
        raise UserError(f"train.device={device} is no device; it must be auto, cuda or cpu") from error
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.backends.cudnn.benchmark = not deterministic
        if deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(deterministic)
    if size > 1:
        _join("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", rank, size, timeout)
        _store().set(f"place/{rank}", f"{socket.gethostname()}, process {os.getpid()}")
    return World(rank, size, chosen)


def _join(backend: str, rank: int, size: int, timeout: float) -> None:
    """torchrun keeps its store over restarts, old addresses included; on one node the count tells them apart.

    (On many nodes the counts differ, so there torchrun needs TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: docs/cluster.md.)
    """
    patience = datetime.timedelta(minutes=timeout)
    store, *_ = next(rendezvous("env://", rank, size, timeout=patience))
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if os.environ.get("GROUP_WORLD_SIZE", "1") == "1" else ""
    store = dist.PrefixStore(f"start{count}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=patience)


def end() -> None:
    """Leave the world in good order."""
    if dist.is_initialized():
        dist.destroy_process_group()


# ---- ranks that fail


def _store() -> dist.Store:
    return dist.distributed_c10d._get_default_store()


def said(text: str, rank: int, local: int, patience: float = 5) -> bool:
    """Whether another rank tells the reader of this error: rank 0, if it meets the same within `patience` seconds.

    Before the ranks have met, the first of each machine speaks.
    """
    if not dist.is_initialized():
        return local != 0
    try:
        _store().set(f"reason/{rank}", text)
        until = time.monotonic() + (patience if rank else 0)
        while time.monotonic() < until:
            if _word("reason/0"):
                return _word("reason/0") == text
            time.sleep(0.05)
    except RuntimeError:  # rank 0, where the ranks met, is gone
        pass
    return False


def lost(error: Exception, patience: float = 5) -> str | None:
    """What an error says of the other ranks: None if it is this rank's own; else which are gone, and why.

    Of the ranks that are left, all but the first get "", so that the reader is told once.
    """
    if not dist.is_initialized():
        return None
    rank, size, text = dist.get_rank(), dist.get_world_size(), str(error)
    if not isinstance(error, dist.DistError) and not any(w in text for w in ("gloo", "NCCL", "Connection", "Socket")):
        said(f"{type(error).__name__}: {text}", rank, 0, patience=0)
        return None
    try:
        left, gone = _roll_call(rank, size, patience)
        if left[0] != rank:
            return ""
        late = "no answer in time (train.timeout)" if "imed out" in text else "gone without a word (killed?)"
        return "; ".join(f"rank {r} ({_word(f'place/{r}')}): {_word(f'reason/{r}') or late}" for r in gone) or text
    except RuntimeError:  # the ranks met at rank 0
        return "rank 0 is gone"


def _roll_call(rank: int, size: int, patience: float) -> tuple[list[int], list[int]]:
    """Ranks that have lost another one, this one included, and ranks that are lost."""
    _store().set(f"here/{rank}", "")
    until = time.monotonic() + patience
    while True:
        left = [r for r in range(size) if _store().check([f"here/{r}"])]
        known = [r for r in range(size) if r in left or _store().check([f"reason/{r}"])]
        if len(known) == size or time.monotonic() > until:
            return left, [r for r in range(size) if r not in left]
        time.sleep(0.1)


def _word(key: str) -> str:
    return _store().get(key).decode() if _store().check([key]) else ""
