"""Distillation of a run, to sample in few steps."""

import pytest
import torch
from conftest import STAGE_TWO, assert_same_tensors, call, metrics_of, tensors_of

import latentdiff

STUDENT = (*STAGE_TWO, "distill=Distill", "autoencoder=", "objective.loss=huber", "objective.timestep_sampling=uniform",
           "sampling.sampler=lcm", "sampling.steps=2", "sampling.guidance_scale=1", "name=student", "train.val_every=4",
           "train.sample_every=8", "train.checkpoint_every=4", "train.steps=8",
           "objective.weighting=learned")  # unlike its teacher  # fmt: skip


@pytest.mark.slow
def test_a_student_starts_from_its_teacher_trains_resumes_and_samples(stage_two_run, runs, copy_run):
    argv = (*STUDENT, f"init={stage_two_run}")
    call(*argv)
    whole, loss = tensors_of(runs / "student" / "checkpoints" / "step_00000008"), metrics_of(runs / "student")
    assert whole["model.learned_weighting.fourier_weights"].std() > 0
    assert not any("teacher" in name for name in whole) and any("val_loss" in row for row in loss)
    assert not any("text_gap" in row for row in loss)
    model, teacher = latentdiff.load_run(runs / "student"), latentdiff.load_run(stage_two_run)
    pairs = zip(model.unet.parameters(), teacher.unet.parameters())
    difference = max((a - b).abs().max().item() for a, b in pairs)
    assert 0 < difference < 0.1
    assert model.sample("a small red circle on a white background").isfinite().all()
    (runs / "student").rename(runs / "before")
    call(*argv, "train.steps=4")
    call(*argv)
    assert_same_tensors(tensors_of(runs / "student" / "checkpoints" / "step_00000008"), whole)
    assert torch.equal(latentdiff.load_run(runs / "student").sample(seed=1), model.sample(seed=1))


def test_a_student_without_a_teacher_or_on_another_schedule_is_refused(stage_two_run, refused):
    assert "distill needs init=RUN" in refused(*STUDENT[:3], *STUDENT[4:])
    assert "another schedule" in refused(*STUDENT, f"init={stage_two_run}", "schedule.snr_shift=3")
    assert "distill.steps is 0" in refused(*STUDENT, f"init={stage_two_run}", "distill.steps=0")
