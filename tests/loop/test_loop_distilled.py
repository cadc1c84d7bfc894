"""A run that learns from another one to draw in few steps."""

import pytest
import torch
from conftest import STAGE_TWO, assert_same_tensors, call, rows, tensors_of

from latentdiff import load

STUDENT = (*STAGE_TWO, "distill=Distill", "autoencoder=", "objective.loss=huber", "objective.timestep_sampling=uniform",
           "sampling.sampler=lcm", "sampling.steps=2", "sampling.guidance_scale=1", "name=student", "train.val_every=4",
           "train.sample_every=8", "train.checkpoint_every=4", "train.steps=8",
           "objective.weighting=learned")  # which its teacher did without  # fmt: skip


@pytest.mark.slow
def test_a_student_starts_as_its_teacher_learns_resumes_and_draws(unbroken_two, runs, copy_of):
    words = (*STUDENT, f"init={unbroken_two}")
    call(*words)
    whole, loss = tensors_of(runs / "student" / "checkpoints" / "step_00000008"), rows(runs / "student")
    assert whole["model.learned_weighting.fourier_weights"].std() > 0
    assert not any("teacher" in name for name in whole) and any("val_loss" in row for row in loss)
    assert not any("text_gap" in row for row in loss)
    model, teacher = load.load_run(runs / "student"), load.load_run(unbroken_two)
    pairs = zip(model.unet.parameters(), teacher.unet.parameters())
    apart = max((ours - theirs).abs().max().item() for ours, theirs in pairs)
    assert 0 < apart < 0.1
    assert model.sample("a small red circle on a white background").isfinite().all()
    (runs / "student").rename(runs / "before")
    call(*words, "train.steps=4")
    call(*words)
    assert_same_tensors(tensors_of(runs / "student" / "checkpoints" / "step_00000008"), whole)
    assert torch.equal(load.load_run(runs / "student").sample(seed=1), model.sample(seed=1))


def test_a_student_without_a_teacher_or_on_another_schedule_is_refused(unbroken_two, refused):
    assert "distill needs init=RUN" in refused(*STUDENT[:3], *STUDENT[4:])
    assert "another schedule" in refused(*STUDENT, f"init={unbroken_two}", "schedule.snr_shift=3")
    assert "distill.steps is 0" in refused(*STUDENT, f"init={unbroken_two}", "distill.steps=0")
