"""Options of training that are state: a run that was stopped goes on with them, bit for bit."""

import pytest
from conftest import STAGE_TWO, assert_same_tensors, call, tensors_of

WORDS = (
    *STAGE_TWO, "train.steps=12", "train.checkpoint_every=6", "train.val_every=12", "train.sample_every=12",
    "schedule.timesteps=4", "sampling.steps=2", "objective.timestep_sampling=importance", "objective.stratified=true",
    "objective.weighting=min_snr", "objective.loss=huber", "train.ema_widths=0.05,0.1", "unet.gradient_checkpointing=true",
    "train.optimizer=muon",
)  # fmt: skip


@pytest.mark.slow
def test_six_steps_and_six_more_equal_twelve(runs):
    call(*WORDS, "name=whole")
    call(*WORDS, "train.steps=6", "name=parts")
    call(*WORDS, "name=parts")
    whole, parts = (tensors_of(runs / run / "checkpoints" / "step_00000012") for run in ("whole", "parts"))
    assert_same_tensors(whole, parts)
    assert whole["model.importance.counts"].tolist() == [10] * 4  # of 96 losses, all timesteps have their ten
    assert whole["model.importance.losses"].std() > 0
