import pytest
import torch
import torch.distributed as dist
from torch import nn

from latentdiff.config import UserError
from latentdiff.training import distributed
from latentdiff.training import precision as precisions
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.precision import autocast, precision

CPU = torch.device("cpu")
SINGLE_PROCESS = World(0, 1, CPU)


def test_one_process_needs_no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = init_distributed("cpu")
    assert (world.rank, world.size, world.device, world.is_main) == (0, 1, CPU, True)


def test_more_ranks_than_devices_raise_before_a_device_is_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"LOCAL_RANK is 4, but torch sees 4 CUDA device\(s\)"):
        init_distributed("auto")


def test_a_single_process_returns_its_arguments():
    x, module = torch.arange(3.0), nn.Linear(2, 2)
    assert SINGLE_PROCESS.all_reduce_sum(x) is x and torch.equal(SINGLE_PROCESS.all_reduce_mean(x), x)
    assert SINGLE_PROCESS.ddp(module) is module and SINGLE_PROCESS.to_device(module) is module
    assert SINGLE_PROCESS.broadcast_bytes("name", lambda: b"bytes") == b"bytes"
    assert SINGLE_PROCESS.all_reduce_max(15) == 15 and SINGLE_PROCESS.all_reduce_max(0) == 0
    SINGLE_PROCESS.barrier()
    with SINGLE_PROCESS.no_sync(module, True):
        pass


def test_broadcast_bytes_returns_the_result_of_rank_0_or_raises_its_error(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    rank0, rank1 = World(0, 2, CPU), World(1, 2, CPU)
    assert (
        rank0.broadcast_bytes("tokenizer", lambda: b"content") == rank1.broadcast_bytes("tokenizer", None) == b"content"
    )
    store.set("error/0", "there are no captions")
    with pytest.raises(UserError, match="there are no captions"):
        rank1.broadcast_bytes("other", None)


def test_broadcast_bytes_raises_when_rank_0_takes_too_long(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    with pytest.raises(UserError, match="rank 0 did not make the tokenizer in 0 hours"):
        World(1, 2, CPU).broadcast_bytes("tokenizer", None, timeout=0)


def test_remaining_ranks_name_the_lost_ranks(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(distributed, "_store", lambda: store)
    for name, value in (("is_initialized", True), ("get_world_size", 3), ("get_rank", 0)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    store.set("host/1", "node1, process 7")
    assert distributed.diagnose_lost_ranks(ValueError("of my own"), timeout=0) is None  # the other ranks can read it
    assert distributed._store_text("error/0") == "ValueError: of my own"
    store.set("alive/2", "")
    text = distributed.diagnose_lost_ranks(RuntimeError("[gloo] Connection closed by peer"), timeout=0)
    assert text == "rank 1 (node1, process 7): exited without an error (killed?)"
    timed_out = RuntimeError("[gloo] Timed out waiting 5000ms")
    assert "no answer in time" in distributed.diagnose_lost_ranks(timed_out, timeout=0)
    store.set("error/1", "its disk is full")
    text = distributed.diagnose_lost_ranks(RuntimeError("gloo"), timeout=0)
    assert text == "rank 1 (node1, process 7): its disk is full"
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    assert distributed.diagnose_lost_ranks(RuntimeError("gloo"), timeout=0) == ""  # rank 0 prints it


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 100])
def test_shards_cover_every_index_once(size, n):
    shards = [World(rank, size, CPU).shard(n) for rank in range(size)]
    assert [i for shard in shards for i in shard] == list(range(n))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


@pytest.mark.parametrize("device", ["abacus", "cpu:x"])
def test_an_unknown_device_raises_an_error(device):
    with pytest.raises(UserError, match=device):
        init_distributed(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_raises_an_error():
    with pytest.raises(UserError, match="no CUDA device"):
        init_distributed("cuda")


def test_precision_returns_the_dtype_of_autocast():
    assert precision("fp32", CPU) == torch.float32 and precision("bf16", CPU) == torch.bfloat16
    assert precision("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="fp8.*bf16"):
        precision("fp8", CPU)


def test_autocast_in_fp32_is_disabled():
    x = torch.randn(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (x @ x).dtype == dtype


@pytest.mark.parametrize("bf16", [True, False])
def test_modules_are_channels_last_except_contiguous_ones_on_a_cpu_with_bf16(monkeypatch, bf16):
    monkeypatch.setattr(precisions, "_cpu_has_bf16", lambda: bf16)
    for contiguous in (False, True):
        weight = precisions.to_device(nn.Conv2d(8, 8, 3), CPU, contiguous).weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is not (contiguous and bf16)
