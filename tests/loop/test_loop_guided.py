"""Drawing with more around the denoiser, by the scripts: a classifier that is trained, a picture, tiles."""

import json

import numpy as np
import pytest
from conftest import STAGE_TWO, assert_same_tensors, call, column, tensors_of
from PIL import Image

TINY = ("train_classifier", "recipes/classifier/shapes.py", "autoencoder=recipes/autoencoder/tiny.py", "data.count=64",
        "data.val_count=16", "data.max_objects=1", "cache.shard_size=32", "cache.batch_size=32", "unet.channels=16",
        "unet.head_channels=8", "unet.norm_groups=8", "schedule.snr_shift=1", "train.batch_size=8", "train.log_every=1",
        "train.val_every=10", "train.checkpoint_every=10", "train.precision=fp32")  # fmt: skip
BLIND = (*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=blind")


def test_a_resumed_classifier_equals_an_unbroken_one(runs):
    call(*TINY, "train.steps=20", "train.lr_schedule=constant", "name=whole")
    call(*TINY, "train.steps=10", "train.lr_schedule=constant", "name=parts")
    call(*TINY, "train.steps=20", "train.lr_schedule=constant", "name=parts")
    last = "checkpoints/step_00000020"
    assert_same_tensors(tensors_of(runs / "whole" / last), tensors_of(runs / "parts" / last))
    assert (runs / "whole" / "model.safetensors").exists() and len(column(runs / "whole", "val_right")) == 2


@pytest.mark.slow
def test_a_classifier_learns_what_it_sees_by_heart(runs):
    call(*TINY, "--overfit=8", "train.steps=200", "train.lr=3e-3", "name=reader")
    right = column(runs / "reader-overfit8", "right")
    assert sum(right[:10]) / 10 < 0.6 and sum(right[-20:]) / 20 > 0.75  # under the noise of any t


def test_a_classifier_guides_a_run_without_classes(runs, tmp_path, refused):
    call(*TINY, "train.steps=2", "name=judge")
    call(*BLIND)
    pictures = {}
    for label, scale in ((0, 0), (0, 50), (1, 50), (None, 0)):
        words = ["--classifier", "judge", "--class", label, "--classifier-scale", scale] if label is not None else []
        out = tmp_path / f"{label}-{scale}"
        call("sample", "--run", "blind", "--steps", 4, "--output", out, *words)
        pictures[label, scale] = np.asarray(Image.open(out / "00000-s0.png")).astype(int)
        about = json.loads((out / "samples.jsonl").read_text())
    assert "classifier" not in about
    assert (pictures[0, 0] == pictures[None, 0]).all() and (pictures[0, 50] != pictures[0, 0]).any()
    assert (pictures[0, 50] != pictures[1, 50]).any()
    given = ("--run", "blind", "--output", tmp_path / "none", "--classifier", "judge")
    assert "--class" in refused("sample", *given)
    assert "0 to 3" in refused("sample", *given, "--class", 4)
    call(*BLIND[:-1], "schedule.snr_shift=3", "name=other")
    assert "schedule" in refused("sample", *given[2:], "--run", "other", "--class", 0)
    assert not (tmp_path / "none").exists()


def test_a_run_is_guided_by_a_picture(runs, tmp_path, refused):
    call(*BLIND)
    Image.new("RGB", (8, 8), (230, 20, 20)).save(tmp_path / "red.png")
    means = []
    for words in ((), ("--guide", tmp_path / "red.png")):
        out = tmp_path / str(len(words))
        call("sample", "--run", "blind", "--steps", 10, "--output", out, *words)
        means.append(np.asarray(Image.open(out / "00000-s0.png")).astype(float).mean((0, 1)))
    target = np.array([230, 20, 20])
    assert np.abs(means[1] - target).sum() < np.abs(means[0] - target).sum() - 2  # by a step of training
    out = ("--run", "blind", "--output", tmp_path / "none", "--guide")
    assert "no.png" in refused("sample", *out, tmp_path / "no.png")
    assert "l2 or lpips" in refused("sample", *out, tmp_path / "red.png", "--guide-by", "l3")


def test_larger_pictures_are_drawn_in_tiles(tmp_path):
    call(*BLIND)
    pictures = []
    blended = ("--tile", 32, "--coding", "blended")
    for words in ((), ("--tile", 64), ("--tile", 32), ("--tile", 32, "--overlap", 0.5), blended):
        out = tmp_path / str(len(pictures))
        call("sample", "--run", "blind", "--steps", 3, "--height", 64, "--width", 64, "--output", out, *words)
        pictures.append(np.asarray(Image.open(out / "00000-s0.png")).astype(int))
    assert all(picture.shape == (64, 64, 3) for picture in pictures)
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # a single tile is none
    assert 0 < np.abs(pictures[2] - pictures[4]).mean() < 20  # the same latent, decoded by tiles with their own norms
    assert json.loads((out / "samples.jsonl").read_text())["coding"] == "blended"


def test_a_classifier_without_a_label_is_refused(refused):
    assert "one Label" in refused("train_classifier", TINY[1], "conditions=")
