"""What is not finite, wherever it comes from, reaches no weight, average, moment or buffer, and training goes on."""

import math

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, assert_same_tensors, call, column, rows, tensors_of
from test_loop_ranks import torchrun

from latentdiff.autoencoder import loss
from latentdiff.data import loader
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import checkpoint, optim

WORDS = ("data.count=16", "data.val_count=4", "train.precision=fp32", "train.steps=4", "train.checkpoint_every=1",
         "train.keep_checkpoints=99", "train.val_every=99", "train.sample_every=99", "train.ema_decay=0.5", "name=run")  # fmt: skip
BATCH_NORM = ("discriminator.norm=batch", "discriminator.start=2", "discriminator.ramp=1")
NAN = math.nan


def at_third_call(function, spoil):
    """The function, but for its third call, whose result is spoiled."""
    calls = []

    def poisoned(*args, **kwargs):
        calls.append(1)
        result = function(*args, **kwargs)
        return spoil(result) if len(calls) == 3 else result

    return poisoned


def data(patch):
    patch.setattr(loader, "images", at_third_call(loader.images, lambda x: x * NAN))


def one_pixel(patch):
    def spoil(x):
        x[0, 0, 0, 0] = math.inf
        return x

    patch.setattr(loader, "images", at_third_call(loader.images, spoil))


def losses(patch):
    def spoil(terms):
        return {name: term * NAN for name, term in terms.items()}

    patch.setattr(loss, "reconstruction_loss", at_third_call(loss.reconstruction_loss, spoil))


def moments(patch):
    """Those of a latent: a row of the cache."""
    called = BatchEncoder.__call__

    def poisoned(latents, batch, step, positions):
        return called(latents, batch | ({"mean": batch["mean"] * NAN} if step == 2 else {}), step, positions)

    patch.setattr(BatchEncoder, "__call__", poisoned)


def loss_of_two(patch):
    backward, calls = optim.backward, []

    def poisoned(value, scaler):
        calls.append(1)
        backward(value * NAN if len(calls) == 3 else value, scaler)

    patch.setattr(optim, "backward", poisoned)


def points(run):
    return [tensors_of(path) for path in sorted((run / "checkpoints").iterdir())]


def only(point, *files):
    return {name: tensor for name, tensor in point.items() if name.partition(".")[0] in files}


@pytest.mark.parametrize("stage, poison, files", [
    ((*STAGE_ONE, *BATCH_NORM), data, ("model", "ema", "optimizer", "discriminator", "discriminator_optimizer")),
    (STAGE_ONE, one_pixel, ("model", "ema", "optimizer", "discriminator", "discriminator_optimizer")),
    (STAGE_ONE, losses, ("model", "ema", "optimizer")),
    (STAGE_TWO, moments, ("model", "ema", "optimizer")),
    ((*STAGE_TWO, "cache.enabled=false"), data, ("model", "ema", "optimizer")),
    (STAGE_TWO, loss_of_two, ("model", "ema", "optimizer")),
], ids=["one-data", "one-pixel", "one-loss", "two-moments", "two-data", "two-loss"])  # fmt: skip
def test_the_third_step_leaves_no_trace(stage, poison, files, runs, monkeypatch):
    poison(monkeypatch)
    call(*stage, *WORDS)
    at = points(runs / "run")
    assert all(torch.isfinite(tensor).all() for point in at for tensor in point.values())
    assert_same_tensors(only(at[1], *files), only(at[2], *files))
    for file in files:
        before, after = only(at[2], file), only(at[3], file)
        assert any(not torch.equal(before[name], after[name]) for name in before)  # training goes on
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0] and column(runs / "run", "total_skipped_steps") == [0, 0, 1, 1]
    if "discriminator" in files:
        assert column(runs / "run", "disc_skipped_steps") == [0, 0, 1, 0]


def test_no_code_is_reset_to_a_non_finite_value(runs, monkeypatch):
    data(monkeypatch)
    vq = (
        "autoencoder.bottleneck=VQ",
        "autoencoder.bottleneck.codebook_size=64",
        "autoencoder.bottleneck.reset_after=1",
    )
    call(*STAGE_ONE, *WORDS, *vq)
    reset = column(runs / "run", "codes_reset")
    assert reset[1] > 0 and reset[2] == 0 and reset[3] > 0
    assert all(torch.isfinite(tensor).all() for point in points(runs / "run") for tensor in point.values())


def spoiled(optimizer):
    """One number of one of Adam's moments."""
    moment = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"]
    moment[(0,) * moment.ndim] = NAN


@pytest.mark.parametrize("stage, whose", [(STAGE_ONE, 0), (STAGE_ONE, 1), (STAGE_TWO, 0)], ids=["one", "critic", "two"])
def test_moments_that_broke_move_no_weight_and_begin_anew(stage, whose, runs, monkeypatch):
    step, seen = optim.step, []

    def poisoned(optimizer, *rest):
        seen.append(optimizer)
        if list(dict.fromkeys(seen)).index(optimizer) == whose and seen.count(optimizer) == 3:
            spoiled(optimizer)
        return step(optimizer, *rest)

    monkeypatch.setattr(optim, "step", poisoned)
    call(*stage, *WORDS, "train.steps=12")
    name = "disc_skipped_steps" if whose else "skipped_steps"
    assert column(runs / "run", name) == [0] * 2 + [1] * 8 + [0] * 2  # every tenth step mends
    weights = ("model", "ema", "discriminator")
    assert all(
        torch.isfinite(tensor).all() for point in points(runs / "run") for tensor in only(point, *weights).values()
    )


def test_the_critic_has_an_fp16_scale_of_its_own_that_is_resumed(runs, monkeypatch):
    scales, step = [], Adversarial.step

    def noted(critic, number):
        scales.append(critic.scaler.get_scale())
        return step(critic, number)

    monkeypatch.setattr(Adversarial, "step", noted)
    words = (*WORDS, "train.precision=fp16")
    call(*STAGE_ONE, *words, "train.steps=8", "name=whole")
    whole, scales[:] = list(scales), []
    call(*STAGE_ONE, *words, "train.steps=4")
    call(*STAGE_ONE, *words, "train.steps=8")
    assert scales == whole
    assert_same_tensors(points(runs / "run")[-1], points(runs / "whole")[-1])
    assert rows(runs / "run")[-1] == rows(runs / "whole")[-1]


@pytest.mark.slow
def test_what_breaks_on_one_rank_is_skipped_by_all(runs):
    """A loss before the gradients are averaged, and a gradient after it, which the other rank does not see."""
    torchrun(*STAGE_TWO, *WORDS, "train.steps=6", FAULT="nan")
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0, 1, 0] and column(runs / "run", "total_skipped_steps")[-1] == 2
    for kind in ("model", "ema"):
        first, second = (checkpoint.read_tensors(runs / "run" / f"{kind}{rank}.safetensors") for rank in (0, 1))
        assert_same_tensors(first, second)
        assert all(torch.isfinite(tensor).all() for tensor in first.values())
    at = points(runs / "run")
    for before, after, moved in ((1, 2, False), (2, 3, True), (3, 4, False), (4, 5, True)):
        weights = [only(at[step], "model") for step in (before, after)]
        assert moved == any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
