"""Both stages on a GPU: mixed precision, compile, CUDA graphs, NCCL, exact resumption and the sizes of the paper.

python -m pytest -m cuda
"""

import os
import subprocess
import sys
from statistics import mean

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, STAGE_ONE, STAGE_TWO, TWENTY, assert_same_tensors, call, column, metrics_of, tensors_of
from torch import nn

from latentdiff import load_run
from latentdiff.config import UserError
from latentdiff.training import distributed
from latentdiff.training.cuda_graph import CudaGraph
from latentdiff.training.distributed import World

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BOTH_STAGES = pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
CUDA = ("train.device=cuda", "data.count=32", "data.val_count=8", "train.val_every=30", "train.sample_every=30")
PAPER = ("train.device=cuda", "train.precision=bf16", "train.steps=100", "train.log_every=5", "train.val_every=100",
         "train.sample_every=100", "train.checkpoint_every=100", "train.batch_size=8", "data=Shapes", "data.count=64",
         "data.val_count=8", "data.height=256", "data.width=256", "name=run")  # fmt: skip


def run_script(stage: tuple[str, str], *argv: str, launcher: tuple[str, ...] = ()) -> str:
    """The output of `python train_....py argv` in a new process, because cuBLAS reads its settings once per process."""
    command = [sys.executable, *launcher, f"{stage[0]}.py", stage[1], *argv]
    result = subprocess.run(command, env=os.environ, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def decreases(losses: list[float], fraction: float = 0.95) -> bool:
    fifth = max(1, len(losses) // 5)
    return mean(losses[-fifth:]) < fraction * mean(losses[:fifth])


def losses_of(stage: tuple[str, str], run) -> list[float]:
    return column(run, "nll" if stage is STAGE_ONE else "loss")


# ---- precision


@BOTH_STAGES
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_in_every_precision_lowers_the_loss(stage, precision, runs):
    if precision == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("this device has no bf16")
    call(*stage, *CUDA, f"train.precision={precision}", "train.steps=30", "name=run")
    assert decreases(losses_of(stage, runs / "run"))
    assert column(runs / "run", "skipped_steps")[-4:] == [0] * 4  # the fp16 loss scale has settled by then
    if stage is STAGE_ONE:
        assert column(runs / "run", "disc_skipped_steps")[-4:] == [0] * 4


@BOTH_STAGES
def test_fp16_resumes_with_its_loss_scale(stage, runs):
    fields = (*CUDA, "train.precision=fp16", "train.checkpoint_every=20")
    call(*stage, *fields, "train.steps=20", "name=run")  # the loss scale settles in about 12 steps
    before = metrics_of(runs / "run")
    call(*stage, *fields, "train.steps=30", "name=run")
    assert metrics_of(runs / "run")[: len(before)] == before
    assert column(runs / "run", "skipped_steps")[20:] == [0] * 10  # the initial scale would overflow again


def test_a_non_finite_gradient_on_the_device_changes_no_weight(runs, monkeypatch):
    from latentdiff.training import optim

    clip_grad_norm_, calls = optim.clip_grad_norm_, []

    def with_nan(optimizer, *args):
        calls.append(1)
        if len(calls) == 3:
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = float("nan")
        return clip_grad_norm_(optimizer, *args)

    monkeypatch.setattr(optim, "clip_grad_norm_", with_nan)
    call(*STAGE_TWO, *CUDA, "train.steps=4", "train.checkpoint_every=1", "train.keep_checkpoints=9", "name=run")
    checkpoints = [tensors_of(path) for path in sorted((runs / "run" / "checkpoints").iterdir())]
    assert_same_tensors(checkpoints[1], checkpoints[2])
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0]


# ---- compile


def test_a_compiled_network_has_the_same_losses(runs):
    fields = (*CUDA, "train.precision=fp32", "train.steps=30")
    for on in ("true", "false"):
        run_script(STAGE_TWO, *fields, f"train.compile={on}", f"name={on}")
    assert column(runs / "true", "loss") == pytest.approx(column(runs / "false", "loss"), rel=1e-2)
    names = [set(tensors_of(runs / on)) for on in ("true", "false")]
    assert names[0] == names[1]  # compiled in place: the parameter names do not change
    assert load_run(runs / "true").sample("a red star", steps=2).shape == (1, 3, 32, 32)


# ---- CUDA graphs


@pytest.mark.parametrize("settings", [{"sampler": "ddpm"}, {"sampler": "heun", "guidance_interval": (0.2, 0.8)}])
def test_sampling_with_a_cuda_graph_gives_the_same_image(settings, runs, monkeypatch):
    call(*STAGE_TWO, *CUDA, "train.precision=fp32", "train.steps=2", "name=run")
    pipeline, calls = load_run(runs / "run").cuda(), []
    pipeline.unet.register_forward_hook(lambda *_: calls.append(1))

    def sample(with_graph: bool) -> tuple[torch.Tensor, int]:
        calls.clear()
        if not with_graph:
            monkeypatch.setattr(CudaGraph, "__call__", lambda self, x, t: self.function(x, t))
        prompts = ["a red star", "a blue circle"]
        return pipeline.sample(prompts, steps=12, guidance_scale=3.0, **settings), len(calls)

    (replayed, few), (eager, many) = sample(True), sample(False)
    assert few <= 8 < 12 <= many  # three eager calls and one capture, each with and without guidance
    torch.testing.assert_close(replayed, eager, rtol=1e-4, atol=1e-4)


@BOTH_STAGES
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_with_cuda_graphs_has_the_same_losses(stage, precision, optimizer, runs, monkeypatch):
    captured, capture = [], CudaGraph.capture  # the graphs of forward_backward, which has parameters

    def counting(self, inputs):
        captured.extend([self] if self.parameters else [])
        capture(self, inputs)

    monkeypatch.setattr(CudaGraph, "capture", counting)
    fields = (
        *CUDA,
        f"train.precision={precision}",
        f"train.optimizer={optimizer}",
        "train.steps=40",
        "train.ema_decay=0.9",
    )
    if stage is STAGE_ONE:
        fields = (*fields, "discriminator.train_from=0.25", "discriminator.start=0.5")
    for on in ("false", "true"):
        call(*stage, *fields, f"train.cuda_graph={on}", f"name={on}")
    if stage is STAGE_ONE:
        assert len(captured) >= 3  # without a discriminator, while only it trains, and with the adversarial loss
    assert captured and decreases(losses_of(stage, runs / "true"))
    replayed, eager = (losses_of(stage, runs / on) for on in ("true", "false"))
    assert replayed[:20] == pytest.approx(eager[:20], rel=1e-3 if precision == "fp32" else 0.05)
    assert replayed == pytest.approx(eager, rel=0.1)  # a discriminator amplifies non-deterministic rounding


def test_a_replayed_graph_uses_new_inputs_and_sets_gradients():
    weight = torch.nn.Parameter(torch.ones(3, device="cuda"))

    def forward_backward(batch: dict, factor: float) -> dict:
        y = factor * batch["x"] * weight
        y.sum().backward()
        return {"y": y}

    graph, x = CudaGraph(forward_backward, [weight]), torch.arange(12.0, device="cuda").view(4, 3)
    for i in range(12):
        batch = {"x": x[i % 4], "text": "same"}
        weight.grad = None
        y = graph(batch, 2.0)["y"]
        torch.testing.assert_close(y, 2 * x[i % 4])
        torch.testing.assert_close(weight.grad, 2 * x[i % 4])
    assert graph.graph is not None and graph.calls == 12
    weight.grad = None
    assert graph({"x": x[0], "text": "other"}, 3.0)["y"].tolist() == [0, 3, 6] and graph.graph is None


def test_a_function_that_cannot_be_captured_raises_an_error_or_is_called_directly():
    synchronises = lambda x: x * x.sum().item()  # noqa: E731
    with_advice, direct = CudaGraph(synchronises, advice="use train.cuda_graph=false"), CudaGraph(synchronises)
    with pytest.raises(UserError, match="train.cuda_graph=false"):
        for _ in range(5):
            with_advice(torch.ones(2, device="cuda"))
    for i in range(8):
        assert direct(torch.full((2,), float(i), device="cuda")).tolist() == [2 * i * i] * 2


# ---- several processes


def test_nccl_and_gloo_work_side_by_side():
    """all_reduce_sum uses NCCL, all_reduce_max gloo; a group of one process stands for several."""
    for name, value in (("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "29511")):
        os.environ.setdefault(name, value)
    distributed._join("cpu:gloo,cuda:nccl", 0, 1, timeout=1)
    try:
        world, x = World(0, 2, torch.device("cuda", 0)), torch.ones(3, device="cuda")  # two in name only
        assert world.all_reduce_sum(x).tolist() == [1, 1, 1] and world.all_reduce_mean(x).tolist() == [0.5] * 3
        assert world.all_reduce_max(15) == 15 and world.barrier() is None
        assert world.broadcast_bytes("bytes", lambda: b"content") == b"content"
        ddp = world.ddp(nn.Linear(3, 2).cuda(), broadcast_buffers=False)
        with world.no_sync(ddp, True):
            ddp(x).sum().backward()
        ddp(x).sum().backward()
        assert ddp.module.weight.grad.tolist() == [[2, 2, 2]] * 2
    finally:
        dist.destroy_process_group()


@BOTH_STAGES
@pytest.mark.parametrize("ranks", [1, 2])
def test_training_on_nccl_lowers_the_loss(stage, ranks, runs):
    if torch.cuda.device_count() < ranks:
        pytest.skip(f"needs {ranks} devices")
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}")
    run_script(stage, *CUDA, "train.precision=fp32", "train.steps=30", "name=two", launcher=torchrun)
    call(*stage, *CUDA, "train.precision=fp32", "train.steps=30", "name=one")
    assert decreases(losses_of(stage, runs / "two"))
    assert losses_of(stage, runs / "two")[:5] == pytest.approx(losses_of(stage, runs / "one")[:5], rel=1e-2)


# ---- resumption


@BOTH_STAGES
def test_ten_steps_and_ten_more_equal_twenty_to_the_bit_when_deterministic(stage, runs):
    fields = (*CUDA, *TWENTY, "train.deterministic=true", "train.precision=fp32")
    for name, steps in (("whole", 20), ("run", 10), ("run", 20)):
        run_script(stage, *fields, f"train.steps={steps}", f"name={name}")
    last = "checkpoints/step_00000020"
    assert_same_tensors(tensors_of(runs / "run" / last), tensors_of(runs / "whole" / last))
    assert metrics_of(runs / "run") == metrics_of(runs / "whole")


# ---- the sizes of the paper


def require_memory(gigabytes: int) -> None:
    if torch.cuda.get_device_properties(0).total_memory < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes} GiB of device memory")


def test_a_hundred_steps_of_the_kl_f8_autoencoder(runs):
    require_memory(24)
    fields = ("loss.perceptual=MultiScale", "discriminator.train_from=0", "discriminator.start=50", "train.lr=1e-4")
    call("train_autoencoder", "recipes/autoencoder/paper/kl-f8.py", *PAPER, *fields)
    assert sum(p.numel() for p in load_run(runs / "run").parameters()) == 83_653_863
    assert decreases(column(runs / "run", "nll"), 0.9) and column(runs / "run", "total_skipped_steps")[-1] == 0
    assert column(runs / "run", "psnr")[-1] > 8


def test_a_hundred_steps_of_text_to_image_with_the_unet_of_872_million(runs):
    require_memory(70)
    fields = ("autoencoder=recipes/autoencoder/paper/kl-f8.py", "autoencoder.latent_stats=data", "cache.batch_size=16",
             "sampling.steps=4", "train.ema_decay=0.999", "train.lr=5e-5")  # fmt: skip
    call("train_diffusion", "recipes/diffusion/paper/txt2img-1p4B-eval.py", *PAPER, *fields)
    pipeline = load_run(runs / "run")
    assert sum(p.numel() for p in pipeline.unet.parameters()) == pytest.approx(872e6, rel=0.01)
    assert decreases(column(runs / "run", "loss")) and column(runs / "run", "total_skipped_steps")[-1] == 0
