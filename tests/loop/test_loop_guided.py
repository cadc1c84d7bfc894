"""Sampling with extra guidance by the scripts: a trained classifier, an image; and sampling in tiles."""

import json

import numpy as np
import pytest
from conftest import STAGE_TWO, assert_same_tensors, call, column, tensors_of
from PIL import Image

TINY = ("train_classifier", "recipes/classifier/shapes.py", "autoencoder=recipes/autoencoder/tiny.py", "data.count=64",
        "data.val_count=16", "data.max_objects=1", "cache.shard_size=32", "cache.batch_size=32", "unet.channels=16",
        "unet.head_channels=8", "unet.norm_groups=8", "schedule.snr_shift=1", "train.batch_size=8", "train.log_every=1",
        "train.val_every=10", "train.checkpoint_every=10", "train.precision=fp32")  # fmt: skip
UNCOND = (*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=uncond")


def test_a_resumed_classifier_equals_an_uninterrupted_one(runs):
    call(*TINY, "train.steps=20", "train.lr_schedule=constant", "name=whole")
    call(*TINY, "train.steps=10", "train.lr_schedule=constant", "name=resumed")
    call(*TINY, "train.steps=20", "train.lr_schedule=constant", "name=resumed")
    last = "checkpoints/step_00000020"
    assert_same_tensors(tensors_of(runs / "whole" / last), tensors_of(runs / "resumed" / last))
    assert (runs / "whole" / "model.safetensors").exists() and len(column(runs / "whole", "val_accuracy")) == 2


@pytest.mark.slow
def test_a_classifier_overfits_a_few_images(runs):
    call(*TINY, "--overfit=8", "train.steps=200", "train.lr=3e-3", "name=classifier")
    accuracy = column(runs / "classifier-overfit8", "accuracy")
    assert sum(accuracy[:10]) / 10 < 0.6 and sum(accuracy[-20:]) / 20 > 0.75  # at noise levels of all t


def test_a_classifier_guides_a_run_without_classes(runs, tmp_path, refused):
    call(*TINY, "train.steps=2", "name=classifier")
    call(*UNCOND)
    images = {}
    for label, scale in ((0, 0), (0, 50), (1, 50), (None, 0)):
        argv = (
            ["--classifier", "classifier", "--class", label, "--classifier-scale", scale] if label is not None else []
        )
        out = tmp_path / f"{label}-{scale}"
        call("sample", "--run", "uncond", "--steps", 4, "--output", out, *argv)
        images[label, scale] = np.asarray(Image.open(out / "00000-s0.png")).astype(int)
        row = json.loads((out / "samples.jsonl").read_text())
    assert "classifier" not in row
    assert (images[0, 0] == images[None, 0]).all() and (images[0, 50] != images[0, 0]).any()
    assert (images[0, 50] != images[1, 50]).any()
    argv = ("--run", "uncond", "--output", tmp_path / "none", "--classifier", "classifier")
    assert "--class" in refused("sample", *argv)
    assert "0 to 3" in refused("sample", *argv, "--class", 4)
    call(*UNCOND[:-1], "schedule.snr_shift=3", "name=other")
    assert "schedule" in refused("sample", *argv[2:], "--run", "other", "--class", 0)
    assert not (tmp_path / "none").exists()


def test_a_run_is_guided_by_an_image(runs, tmp_path, refused):
    call(*UNCOND)
    Image.new("RGB", (8, 8), (230, 20, 20)).save(tmp_path / "red.png")
    means = []
    for argv in ((), ("--guide-image", tmp_path / "red.png")):
        out = tmp_path / str(len(argv))
        call("sample", "--run", "uncond", "--steps", 10, "--output", out, *argv)
        means.append(np.asarray(Image.open(out / "00000-s0.png")).astype(float).mean((0, 1)))
    target = np.array([230, 20, 20])
    assert np.abs(means[1] - target).sum() < np.abs(means[0] - target).sum() - 2  # after a single training step
    out = ("--run", "uncond", "--output", tmp_path / "none", "--guide-image")
    assert "no.png" in refused("sample", *out, tmp_path / "no.png")
    assert "l2 or lpips" in refused("sample", *out, tmp_path / "red.png", "--similarity", "l3")


def test_larger_images_are_sampled_in_tiles(tmp_path):
    call(*UNCOND)
    images = []
    blended = ("--tile-size", 32, "--tiling", "blended")
    for argv in ((), ("--tile-size", 64), ("--tile-size", 32), ("--tile-size", 32, "--tile-overlap", 0.5), blended):
        out = tmp_path / str(len(images))
        call("sample", "--run", "uncond", "--steps", 3, "--height", 64, "--width", 64, "--output", out, *argv)
        images.append(np.asarray(Image.open(out / "00000-s0.png")).astype(int))
    assert all(image.shape == (64, 64, 3) for image in images)
    assert np.abs(images[0] - images[1]).max() <= 1  # a single tile changes nothing
    assert 0 < np.abs(images[2] - images[4]).mean() < 20  # the same latent; tiles have their own normalization
    assert json.loads((out / "samples.jsonl").read_text())["tiling"] == "blended"


def test_fields_of_a_diffusion_recipe_that_a_classifier_does_not_have_are_refused(refused):
    for field in ("conditions=", "objective.prediction=v", "distill=Distill", "init=RUN", "align=Align"):
        assert "has no field" in refused("train_classifier", TINY[1], field)
