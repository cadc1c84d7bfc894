"""Two ranks stay equal to each other, and to one rank with the same global batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, STAGE_ONE, STAGE_TWO, assert_same_tensors, call, column, tensors_of

from latentdiff.data import loader
from latentdiff.training.checkpoint import read_tensors

ARGS = ("train.precision=fp32", "train.lr=1e-4", "train.val_every=10", "train.checkpoint_every=10",
         "train.sample_every=50", "sampling.steps=2", "data.count=32", "data.val_count=40")  # two batches  # fmt: skip
# small losses keep the adaptive weight below its limit
ONE = ("train.steps=20", "discriminator.train_from=0", "discriminator.start=2", "discriminator.ramp=2",
       "discriminator.weight=0.5", "loss.l1=0.01", "loss.perceptual.weight=0.01")  # fmt: skip
TWO = ("train.steps=50", "objective.weighting=learned")


def torchrun(
    name: str, *argv: str, ranks: int = 2, restarts: int = 0, check: bool = True, **env: str
) -> subprocess.CompletedProcess:
    """Run `torchrun --nproc_per_node=2 name.py argv`; every rank also saves its model, EMA and loss."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}",
               f"--max-restarts={restarts}"]  # fmt: skip
    paths = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [*command, Path(__file__).with_name("ranks.py"), name, *argv],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths} | env, cwd=ROOT, check=check,
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip


def max_difference(a: dict, b: dict) -> float:
    """The largest absolute difference of any weight."""
    names = a.keys() - {"latent_shift", "latent_scale"}  # measured at the end of training
    return max((a[name].double() - b[name].double()).abs().max().item() for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("stage, loss, argv", [
    (STAGE_ONE, "nll", (*ARGS[:5], *ARGS[6:], *ONE)), (STAGE_TWO, "loss", (*ARGS, *TWO)),
], ids=["one", "two"])  # fmt: skip
def test_two_ranks_stay_equal_and_match_one_rank(stage, loss, argv, runs):
    torchrun(*stage, *argv, "name=two")
    call(*stage, *argv, "name=one")
    two, last = runs / "two", sorted((runs / "one" / "checkpoints").iterdir())[-1].relative_to(runs / "one")
    for kind in ("model", "ema"):
        first, second = (read_tensors(two / f"{kind}{rank}.safetensors") for rank in (0, 1))
        assert_same_tensors(first, second)
        assert max_difference(first, read_tensors(runs / "one" / last / f"{kind}.safetensors")) < 1e-3
    assert column(two, loss) == pytest.approx(column(runs / "one", loss), rel=1e-4)
    assert tensors_of(two / last).keys() == tensors_of(runs / "one" / last).keys()
    if stage is STAGE_ONE:
        scale_two, scale_one = (read_tensors(run / "model.safetensors")["latent_scale"] for run in (two, runs / "one"))
        assert scale_two.flatten().tolist() == pytest.approx(scale_one.flatten().tolist(), rel=1e-4)
        assert scale_two[0] != 1
        discriminator = (read_tensors(run / last / "discriminator.safetensors") for run in (two, runs / "one"))
        assert max_difference(*discriminator) < 1e-3
        assert column(two, "adaptive_weight") == pytest.approx(column(runs / "one", "adaptive_weight"), rel=0.02)
        assert max(column(two, "adaptive_weight")) < 9000
        assert column(two, "psnr") == pytest.approx(column(runs / "one", "psnr"), rel=1e-3)
    else:
        assert column(two, "text_gap") == pytest.approx(column(runs / "one", "text_gap"), abs=1e-5)
        assert column(two, "val_loss") == pytest.approx(column(runs / "one", "val_loss"), rel=1e-4)


@pytest.mark.slow
def test_in_float64_the_loss_of_two_ranks_equals_that_of_one_for_fifty_steps(runs):
    for ranks, name in ((2, "two"), (1, "one")):
        torchrun(*STAGE_TWO, *ARGS, "train.steps=50", f"name={name}", ranks=ranks, FLOAT64="1")
    two, one = (read_tensors(runs / name / "loss0.safetensors")["loss"] for name in ("two", "one"))
    assert len(one) == 50 and ((two - one).abs() / one).max() < 1e-9
    assert_same_tensors(*(read_tensors(runs / "two" / f"model{rank}.safetensors") for rank in (0, 1)))


@pytest.mark.slow
def test_an_error_on_two_ranks_is_printed_once(runs):
    result = torchrun(*STAGE_TWO, "train.batch_size=3", check=False)
    assert result.returncode != 0
    assert result.stderr.count("error: train.batch_size is 3; with 2 processes") == 1
    assert not runs.exists()


def test_micro_batches_of_all_ranks_partition_the_batch():
    for size, count in ((1, 1), (2, 1), (1, 4), (2, 2), (4, 3)):
        ranks = [loader.micro_batches(rank, size, 24, count) for rank in range(size)]
        assert [i for micro_batches in ranks for positions in micro_batches for i in positions] == list(range(24))
        assert {len(positions) for micro_batches in ranks for positions in micro_batches} == {24 // size // count}
