import pytest
import torch
import torch.distributed as dist
from torch import nn

from latentdiff.config import UserError
from latentdiff.training import distributed as worlds
from latentdiff.training.distributed import World, start
from latentdiff.training.precision import autocast, precision

CPU = torch.device("cpu")
SINGLE_PROCESS = World(0, 1, CPU)


def test_one_process_needs_no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    world = start("cpu")
    assert (world.rank, world.size, world.device, world.is_main) == (0, 1, CPU, True)


def test_more_ranks_than_devices_are_refused_before_any_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(UserError, match=r"LOCAL_RANK is 4, but torch sees 4 CUDA device\(s\)"):
        start("auto")


def test_alone_everything_is_what_it_was():
    x, module = torch.arange(3.0), nn.Linear(2, 2)
    assert SINGLE_PROCESS.sum(x) is x and torch.equal(SINGLE_PROCESS.mean(x), x)
    assert SINGLE_PROCESS.parallel(module) is module and SINGLE_PROCESS.place(module) is module
    assert SINGLE_PROCESS.share("name", lambda: b"bytes") == b"bytes"
    assert SINGLE_PROCESS.agree(15) == 15 and SINGLE_PROCESS.agree(0) == 0
    SINGLE_PROCESS.barrier()
    with SINGLE_PROCESS.no_sync(module, True):
        pass


def test_ranks_get_what_the_first_makes_or_its_reason(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(worlds, "_store", lambda: store)
    first, second = World(0, 2, CPU), World(1, 2, CPU)
    assert first.share("words", lambda: b"made") == second.share("words", None) == b"made"
    store.set("reason/0", "there are no captions")
    with pytest.raises(UserError, match="there are no captions"):
        second.share("others", None)


def test_the_ranks_that_are_left_name_those_that_are_gone(monkeypatch):
    store = dist.HashStore()
    monkeypatch.setattr(worlds, "_store", lambda: store)
    for name, value in (("is_initialized", True), ("get_world_size", 3), ("get_rank", 0)):
        monkeypatch.setattr(dist, name, lambda value=value: value)
    store.set("place/1", "node1, process 7")
    assert worlds.lost(ValueError("of my own"), patience=0) is None  # and the others are told why
    assert worlds._word("reason/0") == "ValueError: of my own"
    store.set("here/2", "")
    text = worlds.lost(RuntimeError("[gloo] Connection closed by peer"), patience=0)
    assert text == "rank 1 (node1, process 7): gone without a word (killed?)"
    assert "no answer in time" in worlds.lost(RuntimeError("[gloo] Timed out waiting 5000ms"), patience=0)
    store.set("reason/1", "its disk is full")
    assert worlds.lost(RuntimeError("gloo"), patience=0) == "rank 1 (node1, process 7): its disk is full"
    monkeypatch.setattr(dist, "get_rank", lambda: 2)
    assert worlds.lost(RuntimeError("gloo"), patience=0) == ""  # the first that is left has said it


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [0, 1, 6, 7, 100])
def test_shares_cover_everything_once(size, n):
    shares = [World(rank, size, CPU).share_of(n) for rank in range(size)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("device", ["abacus", "cpu:x"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(UserError, match=device):
        start(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device_is_refused():
    with pytest.raises(UserError, match="no CUDA device"):
        start("cuda")


def test_precision_names_what_autocast_computes_in():
    assert precision("fp32", CPU) == torch.float32 and precision("bf16", CPU) == torch.bfloat16
    assert precision("auto", CPU) in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="fp8.*bf16"):
        precision("fp8", CPU)


def test_autocast_in_fp32_is_none():
    x = torch.randn(2, 2)
    for dtype in (torch.float32, torch.bfloat16):
        with autocast(CPU, dtype):
            assert (x @ x).dtype == dtype


@pytest.mark.parametrize("bf16", [True, False])
def test_channels_last_but_for_what_trains_plainly_in_bf16_on_a_cpu(monkeypatch, bf16):
    monkeypatch.setattr(worlds, "_cpu_has_bf16", lambda: bf16)
    for plain in (False, True):
        weight = worlds.place(nn.Conv2d(8, 8, 3), CPU, plain).weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is not (plain and bf16)
