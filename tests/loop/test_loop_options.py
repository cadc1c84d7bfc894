"""Training options with a state of their own resume bit for bit."""

import pytest
from conftest import STAGE_TWO, assert_same_tensors, call, tensors_of

ARGS = (
    *STAGE_TWO, "train.steps=12", "train.checkpoint_every=6", "train.val_every=12", "train.sample_every=12",
    "schedule.timesteps=4", "sampling.steps=2", "objective.timestep_sampling=logit_normal", "objective.stratified=true",
    "objective.weighting=min_snr", "objective.loss=huber", "train.ema_widths=0.05,0.1",
    "unet.gradient_checkpointing=true", "train.optimizer=muon",
)  # fmt: skip


@pytest.mark.slow
def test_six_steps_and_six_more_equal_twelve(runs):
    call(*ARGS, "name=whole")
    call(*ARGS, "train.steps=6", "name=resumed")
    call(*ARGS, "name=resumed")
    whole, resumed = (tensors_of(runs / run / "checkpoints" / "step_00000012") for run in ("whole", "resumed"))
    assert_same_tensors(whole, resumed)
