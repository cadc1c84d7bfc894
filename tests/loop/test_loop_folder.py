"""Both stages on a folder of somebody's own pictures."""

import json

import numpy as np
import pytest
from conftest import STAGE_ONE, STAGE_TWO, call, column, rows, written
from PIL import Image

import latentdiff

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


@pytest.fixture
def pictures(tmp_path):
    """24 pictures of odd sizes with captions beside them, one of them torn."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(24):
        name, colour = list(COLOURS.items())[i % 4]
        noise = np.random.default_rng(i).integers(-20, 20, (40 + i, 50, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} wall")
    torn = folder / "13.png"
    torn.write_bytes(torn.read_bytes()[:400])
    return ("data=Folder", f"data.path={folder}", "data.size=32", "data.max_bad=0.1", "data.val_share=0.1")


def bad(run):
    return [json.loads(line) for line in (run / "bad_pictures.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_folder_trains_and_the_torn_picture_is_listed(stage, pictures, runs):
    call(*stage, *pictures, "train.steps=8", "name=run")
    (entry,) = bad(runs / "run")
    assert entry["id"] == "13.png" and entry["reason"] and "cache" not in entry["reason"]
    assert (runs / "run" / "model.safetensors").exists()
    if stage is STAGE_TWO:
        assert latentdiff.load_run(runs / "run").sample("a red wall", steps=2).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_too_many_bad_pictures_stop_the_run_with_the_list(stage, pictures, runs, refused):
    error = refused(*stage, *pictures, "data.max_bad=0.01", "train.steps=8", "name=run")
    assert "13.png" in error and "data.max_bad" in error


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_run_needs_no_held_out_pictures(stage, pictures, runs):
    call(*stage, *pictures[:-1], "data.val_share=0", "train.steps=3", "train.val_every=2", "name=run")
    assert not [row for row in rows(runs / "run") if "val_loss" in row or "psnr" in row]
    assert len(column(runs / "run", "lr")) == 3


def test_flips_and_crops_have_rows_of_their_own_in_the_cache(pictures, runs, tmp_path):
    words = ("data.flip=true", "data.crop=random", "cache.copies=4", f"cache.path={tmp_path / 'cache'}")
    call(*STAGE_TWO, *pictures, *words, "train.steps=2", "name=run")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["copies"] == 4 and manifest["rows"] % 4 == 0
    assert "shard_00001.safetensors" in written(tmp_path / "cache")
