"""Both stages on a GPU: half types, compile, NCCL, exact restarts, and the paper's sizes. python -m pytest -m cuda"""

import os
import subprocess
import sys
from statistics import mean

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, STAGE_ONE, STAGE_TWO, TWENTY, assert_same_tensors, call, column, rows, tensors_of
from torch import nn

from latentdiff import load_run
from latentdiff.config import UserError
from latentdiff.training import distributed as worlds
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import World

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOTH = pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
CUDA = ("train.device=cuda", "data.count=32", "data.val_count=8", "train.val_every=30", "train.sample_every=30")
PAPER = ("train.device=cuda", "train.precision=bf16", "train.steps=100", "train.log_every=5", "train.val_every=100",
         "train.sample_every=100", "train.checkpoint_every=100", "train.batch_size=8", "data=Shapes", "data.count=64",
         "data.val_count=8", "data.height=256", "data.width=256", "name=run")  # fmt: skip


def in_its_own_process(stage: tuple[str, str], *words: str, launcher: tuple[str, ...] = ()) -> str:
    """`python train_....py words`, or under a launcher: what it says. cuBLAS reads its settings once per process."""
    command = [sys.executable, *launcher, f"{stage[0]}.py", stage[1], *words]
    result = subprocess.run(command, env=os.environ, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def falls(losses: list[float], share: float = 0.95) -> bool:
    fifth = max(1, len(losses) // 5)
    return mean(losses[-fifth:]) < share * mean(losses[:fifth])


def loss_of(stage: tuple[str, str], run) -> list[float]:
    return column(run, "nll" if stage is STAGE_ONE else "loss")


# ---- precision


@BOTH
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns(stage, precision, runs):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this device has no bf16")
    call(*stage, *CUDA, f"train.precision={precision}", "train.steps=30", "name=run")
    assert falls(loss_of(stage, runs / "run"))
    assert column(runs / "run", "skipped")[-4:] == [0] * 4  # fp16 has found its scale by then
    if stage is STAGE_ONE:
        assert column(runs / "run", "disc_skipped")[-4:] == [0] * 4


@BOTH
def test_fp16_goes_on_with_its_scales(stage, runs):
    words = (*CUDA, "train.precision=fp16", "train.checkpoint_every=20")
    call(*stage, *words, "train.steps=20", "name=run")  # it takes a dozen to find them
    before = rows(runs / "run")
    call(*stage, *words, "train.steps=30", "name=run")
    assert rows(runs / "run")[: len(before)] == before
    assert column(runs / "run", "skipped")[20:] == [0] * 10  # a scale that began anew would overflow again


def test_a_bad_step_on_the_device_leaves_no_trace(runs, monkeypatch):
    from latentdiff.training import optim

    step, calls = optim.step, []

    def poisoned(optimizer, *rest):
        calls.append(1)
        if len(calls) == 3:
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = float("nan")
        return step(optimizer, *rest)

    monkeypatch.setattr(optim, "step", poisoned)
    call(*STAGE_TWO, *CUDA, "train.steps=4", "train.checkpoint_every=1", "train.keep_checkpoints=9", "name=run")
    at = [tensors_of(path) for path in sorted((runs / "run" / "checkpoints").iterdir())]
    assert_same_tensors(at[1], at[2])
    assert column(runs / "run", "skipped") == [0, 0, 1, 0]


# ---- compile


def test_a_compiled_network_learns_the_same(runs):
    words = (*CUDA, "train.precision=fp32", "train.steps=30")
    for on in ("true", "false"):
        in_its_own_process(STAGE_TWO, *words, f"train.compile={on}", f"name={on}")
    assert column(runs / "true", "loss") == pytest.approx(column(runs / "false", "loss"), rel=1e-2)
    names = [set(tensors_of(runs / on)) for on in ("true", "false")]
    assert names[0] == names[1]  # compiled in place: no other names in the file
    assert load_run(runs / "true").sample("a red star", steps=2).shape == (1, 3, 32, 32)


# ---- replay


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"sampler": "heun", "guidance_interval": (0.2, 0.8)}])
def test_replayed_steps_draw_the_same_picture(settings, runs, monkeypatch):
    call(*STAGE_TWO, *CUDA, "train.precision=fp32", "train.steps=2", "name=run")
    model, calls = load_run(runs / "run").cuda(), []
    model.unet.register_forward_hook(lambda *_: calls.append(1))

    def drawn(recorded: bool) -> tuple[torch.Tensor, int]:
        calls.clear()
        if not recorded:
            monkeypatch.setattr(CudaGraph, "__call__", lambda self, x, t: self.function(x, t))
        return model.sample(["a red star", "a blue circle"], steps=12, guidance_scale=3.0, **settings), len(calls)

    (replayed, few), (usual, many) = drawn(True), drawn(False)
    assert few <= 8 < 12 <= many  # three as usual and one recorded, for each of the guided and the plain network
    torch.testing.assert_close(replayed, usual, rtol=1e-4, atol=1e-4)


@BOTH
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_recorded_pass_learns_the_same(stage, precision, optimizer, runs, monkeypatch):
    kinds, record = [], CudaGraph.record
    monkeypatch.setattr(CudaGraph, "record", lambda self, inputs: kinds.append(self.kind) or record(self, inputs))
    words = (
        *CUDA,
        f"train.precision={precision}",
        f"train.optimizer={optimizer}",
        "train.steps=40",
        "train.ema_decay=0.9",
    )
    words = (*words, "discriminator.train_from=0.25", "discriminator.start=0.5") if stage is STAGE_ONE else words
    for on in ("false", "true"):
        call(*stage, *words, f"train.cuda_graph={on}", f"name={on}")
    if stage is STAGE_ONE:
        assert len(kinds) >= 3  # without a discriminator, while it learns, and with its weight
    assert kinds and falls(loss_of(stage, runs / "true"))
    recorded, usual = (loss_of(stage, runs / on) for on in ("true", "false"))
    assert recorded[:20] == pytest.approx(usual[:20], rel=1e-3 if precision == "fp32" else 0.05)
    assert recorded == pytest.approx(usual, rel=0.1)  # a discriminator at work magnifies what kernels leave to chance


def test_what_is_played_back_follows_its_inputs_and_leaves_gradients():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def walk(batch: dict, factor: float) -> dict:
        y = factor * batch["x"] * weight
        y.sum().backward()
        return {"y": y}

    walk, counts = CudaGraph(walk, [weight]), torch.arange(12.0, device="cuda").view(4, 3)
    for i in range(12):
        given = {"x": counts[i % 4], "word": "same"}
        weight.grad = None
        y = walk(given, 2.0)["y"]
        torch.testing.assert_close(y, 2 * counts[i % 4])
        torch.testing.assert_close(weight.grad, 2 * counts[i % 4])
    assert walk.graph is not None and walk.calls == 12
    weight.grad = None
    assert walk({"x": counts[0], "word": "other"}, 3.0)["y"].tolist() == [0, 3, 6] and walk.graph is None


def test_what_cannot_be_recorded_is_refused_or_called_as_it_is():
    reads_back = lambda x: x * x.sum().item()  # noqa: E731
    refused, usual = CudaGraph(reads_back, advice="use train.cuda_graph=false"), CudaGraph(reads_back)
    with pytest.raises(UserError, match="train.cuda_graph=false"):
        for _ in range(5):
            refused(torch.ones(2, device="cuda"))
    for i in range(8):
        assert usual(torch.full((2,), float(i), device="cuda")).tolist() == [2 * i * i] * 2


# ---- ranks


def test_nccl_and_gloo_work_side_by_side():
    """Sums go through the device, agreement through the CPUs; a group of one stands in for many."""
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511")):
        os.environ.setdefault(name, value)
    worlds._join("cpu:gloo,cuda:nccl", 0, 1, timeout=1)
    try:
        world, x = World(0, 2, torch.device("cuda", 0)), torch.ones(3, device="cuda")  # two in name
        assert world.sum(x).tolist() == [1, 1, 1] and world.mean(x).tolist() == [0.5] * 3
        assert world.agree(15) == 15 and world.barrier() is None
        assert world.share("bytes", lambda: b"made") == b"made"
        layer = world.parallel(nn.Linear(3, 2).cuda(), broadcast_buffers=False)
        with world.no_sync(layer, True):
            layer(x).sum().backward()
        layer(x).sum().backward()
        assert layer.module.weight.grad.tolist() == [[2, 2, 2]] * 2
    finally:
        dist.destroy_process_group()


@BOTH
@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_on_nccl_learn(stage, ranks, runs):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} devices")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    in_its_own_process(stage, *CUDA, "train.precision=fp32", "train.steps=30", "name=two", launcher=torchrun)
    call(*stage, *CUDA, "train.precision=fp32", "train.steps=30", "name=one")
    assert falls(loss_of(stage, runs / "two"))
    assert loss_of(stage, runs / "two")[:5] == pytest.approx(loss_of(stage, runs / "one")[:5], rel=1e-2)


# ---- restarts


@BOTH
def test_ten_steps_and_ten_more_equal_twenty_to_the_bit_when_deterministic(stage, runs):
    words = (*CUDA, *TWENTY, "train.deterministic=true", "train.precision=fp32")
    for name, steps in (("whole", 20), ("run", 10), ("run", 20)):
        in_its_own_process(stage, *words, f"train.steps={steps}", f"name={name}")
    last = "checkpoints/step_00000020"
    assert_same_tensors(tensors_of(runs / "run" / last), tensors_of(runs / "whole" / last))
    assert rows(runs / "run") == rows(runs / "whole")


# ---- the paper's sizes


def room(gigabytes: int) -> None:
    if torch.cuda.get_device_properties(0).total_memory < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of device memory")


def test_a_hundred_steps_of_the_kl_f8_autoencoder(runs):
    room(24)
    words = ("loss.perceptual=MultiScale", "discriminator.train_from=0", "discriminator.start=50", "train.lr=1e-4")
    call("train_autoencoder", "recipes/autoencoder/paper/kl-f8.py", *PAPER, *words)
    assert sum(p.numel() for p in load_run(runs / "run").parameters()) == 83_653_863
    assert falls(column(runs / "run", "nll"), 0.9) and column(runs / "run", "bad_steps")[-1] == 0
    assert column(runs / "run", "psnr")[-1] > 8


def test_a_hundred_steps_of_text_to_image_with_the_unet_of_872_million(runs):
    room(70)
    words = ("autoencoder=recipes/autoencoder/paper/kl-f8.py", "autoencoder.latent_stats=data", "cache.batch_size=16",
             "sampling.steps=4", "train.ema_decay=0.999", "train.lr=5e-5")  # fmt: skip
    call("train_diffusion", "recipes/diffusion/paper/txt2img-1p4B-eval.py", *PAPER, *words)
    model = load_run(runs / "run")
    assert sum(p.numel() for p in model.unet.parameters()) == pytest.approx(872e6, rel=0.01)
    assert falls(column(runs / "run", "loss")) and column(runs / "run", "bad_steps")[-1] == 0
