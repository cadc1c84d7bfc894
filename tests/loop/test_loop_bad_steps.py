"""Non-finite values of any origin never reach weights, EMA, moments or buffers, and training continues."""

import math

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, assert_same_tensors, call, column, metrics_of, tensors_of
from test_loop_ranks import torchrun

from latentdiff.autoencoder import loss
from latentdiff.data import loader
from latentdiff.stage_one.adversarial import Adversarial
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training import checkpoint, optim

ARGS = ("data.count=16", "data.val_count=4", "train.precision=fp32", "train.steps=4", "train.checkpoint_every=1",
        "train.keep_checkpoints=99", "train.val_every=99", "train.sample_every=99", "train.ema_decay=0.5",
        "name=run")  # fmt: skip
BATCH_NORM = ("discriminator.norm=batch", "discriminator.start=2", "discriminator.ramp=1")
NAN = math.nan
GAN_FILES = ("model", "ema", "optimizer", "discriminator", "discriminator_optimizer")


def at_third_call(function, corrupt):
    """The function; the result of its third call is corrupted."""
    calls = []

    def corrupted(*args, **kwargs):
        calls.append(1)
        result = function(*args, **kwargs)
        return corrupt(result) if len(calls) == 3 else result

    return corrupted


def corrupt_images(patch):
    patch.setattr(loader, "images", at_third_call(loader.images, lambda x: x * NAN))


def corrupt_one_pixel(patch):
    def corrupt(x):
        x[0, 0, 0, 0] = math.inf
        return x

    patch.setattr(loader, "images", at_third_call(loader.images, corrupt))


def corrupt_loss_terms(patch):
    def corrupt(terms):
        return {name: term * NAN for name, term in terms.items()}

    patch.setattr(loss, "reconstruction_loss", at_third_call(loss.reconstruction_loss, corrupt))


def corrupt_moments(patch):
    """Of a latent in the cache."""
    encode = BatchEncoder.__call__

    def corrupted(latents, batch, step, positions):
        return encode(latents, batch | ({"mean": batch["mean"] * NAN} if step == 2 else {}), step, positions)

    patch.setattr(BatchEncoder, "__call__", corrupted)


def corrupt_loss(patch):
    scale = at_third_call(torch.amp.GradScaler.scale, lambda loss: loss * NAN)
    patch.setattr(torch.amp.GradScaler, "scale", scale)


def checkpoints(run):
    return [tensors_of(path) for path in sorted((run / "checkpoints").iterdir())]


def select(tensors, *files):
    return {name: tensor for name, tensor in tensors.items() if name.partition(".")[0] in files}


@pytest.mark.parametrize("stage, corrupt, files", [
    ((*STAGE_ONE, *BATCH_NORM), corrupt_images, GAN_FILES),
    (STAGE_ONE, corrupt_one_pixel, GAN_FILES),
    (STAGE_ONE, corrupt_loss_terms, ("model", "ema", "optimizer")),
    (STAGE_TWO, corrupt_moments, ("model", "ema", "optimizer")),
    ((*STAGE_TWO, "cache.enabled=false"), corrupt_images, ("model", "ema", "optimizer")),
    (STAGE_TWO, corrupt_loss, ("model", "ema", "optimizer")),
], ids=["one-data", "one-pixel", "one-loss", "two-moments", "two-data", "two-loss"])  # fmt: skip
def test_a_non_finite_third_step_changes_nothing(stage, corrupt, files, runs, monkeypatch):
    corrupt(monkeypatch)
    call(*stage, *ARGS)
    saved = checkpoints(runs / "run")
    assert all(torch.isfinite(tensor).all() for tensors in saved for tensor in tensors.values())
    assert_same_tensors(select(saved[1], *files), select(saved[2], *files))
    for file in files:
        before, after = select(saved[2], file), select(saved[3], file)
        assert any(not torch.equal(before[name], after[name]) for name in before)  # training continues
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0] and column(runs / "run", "total_skipped_steps") == [
        0,
        0,
        1,
        1,
    ]
    if "discriminator" in files:
        assert column(runs / "run", "disc_skipped_steps") == [0, 0, 1, 0]


def test_no_code_is_reset_to_a_non_finite_value(runs, monkeypatch):
    corrupt_images(monkeypatch)
    vq = (
        "autoencoder.bottleneck=VQ",
        "autoencoder.bottleneck.codebook_size=64",
        "autoencoder.bottleneck.reset_after=1",
    )
    call(*STAGE_ONE, *ARGS, *vq)
    reset = column(runs / "run", "codes_reset")
    assert reset[1] > 0 and reset[2] == 0 and reset[3] > 0
    assert all(torch.isfinite(tensor).all() for tensors in checkpoints(runs / "run") for tensor in tensors.values())


def corrupt_adam(optimizer):
    """Set one element of one of Adam's moments to NaN."""
    moment = optimizer.state[optimizer.param_groups[0]["params"][0]]["exp_avg"]
    moment[(0,) * moment.ndim] = NAN


@pytest.mark.parametrize(
    "stage, index", [(STAGE_ONE, 0), (STAGE_ONE, 1), (STAGE_TWO, 0)], ids=["one", "discriminator", "two"]
)
def test_non_finite_moments_of_adam_change_no_weight_and_are_reset(stage, index, runs, monkeypatch):
    clip, seen = optim.clip_grad_norm_, []

    def corrupted(optimizer, *rest):
        seen.append(optimizer)
        if list(dict.fromkeys(seen)).index(optimizer) == index and seen.count(optimizer) == 3:
            corrupt_adam(optimizer)
        return clip(optimizer, *rest)

    monkeypatch.setattr(optim, "clip_grad_norm_", corrupted)
    call(*stage, *ARGS, "train.steps=12")
    name = "disc_skipped_steps" if index else "skipped_steps"
    assert column(runs / "run", name) == [0] * 2 + [1] * 8 + [0] * 2  # reset at every tenth step
    weights = ("model", "ema", "discriminator")
    assert all(
        torch.isfinite(tensor).all()
        for tensors in checkpoints(runs / "run")
        for tensor in select(tensors, *weights).values()
    )


def test_the_discriminator_has_its_own_fp16_scale_which_is_resumed(runs, monkeypatch):
    scales, step = [], Adversarial.step

    def recorded(adversarial, *args):
        scales.append(adversarial.scaler.get_scale())
        return step(adversarial, *args)

    monkeypatch.setattr(Adversarial, "step", recorded)
    argv = (*ARGS, "train.precision=fp16")
    call(*STAGE_ONE, *argv, "train.steps=8", "name=whole")
    whole, scales[:] = list(scales), []
    call(*STAGE_ONE, *argv, "train.steps=4")
    call(*STAGE_ONE, *argv, "train.steps=8")
    assert scales == whole
    assert_same_tensors(checkpoints(runs / "run")[-1], checkpoints(runs / "whole")[-1])
    assert metrics_of(runs / "run")[-1] == metrics_of(runs / "whole")[-1]


@pytest.mark.slow
def test_a_step_that_is_not_finite_on_one_rank_is_skipped_by_all(runs):
    """A loss before the gradients are averaged over the ranks, and a gradient of one rank after that."""
    torchrun(*STAGE_TWO, *ARGS, "train.steps=6", FAULT="nan")
    assert (
        column(runs / "run", "skipped_steps") == [0, 0, 1, 0, 1, 0]
        and column(runs / "run", "total_skipped_steps")[-1] == 2
    )
    for kind in ("model", "ema"):
        first, second = (checkpoint.read_tensors(runs / "run" / f"{kind}{rank}.safetensors") for rank in (0, 1))
        assert_same_tensors(first, second)
        assert all(torch.isfinite(tensor).all() for tensor in first.values())
    saved = checkpoints(runs / "run")
    for before, after, changed in ((1, 2, False), (2, 3, True), (3, 4, False), (4, 5, True)):
        weights = [select(saved[step], "model") for step in (before, after)]
        assert changed == any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
