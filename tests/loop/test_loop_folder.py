"""Both stages on a folder of images."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import STAGE_ONE, STAGE_TWO, call, column, files_in, metrics_of
from PIL import Image

import latentdiff

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 220), "white": (250, 250, 250)}


@pytest.fixture
def folder_args(tmp_path):
    """Arguments for a folder with 24 captioned images of different sizes, one of them truncated."""
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(24):
        name, colour = list(COLOURS.items())[i % 4]
        noise = np.random.default_rng(i).integers(-20, 20, (40 + i, 50, 3))
        Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"a {name} wall")
    truncated = folder / "13.png"
    truncated.write_bytes(truncated.read_bytes()[:400])
    return ("data=Folder", f"data.path={folder}", "data.size=32", "data.max_bad_fraction=0.1", "data.val_fraction=0.1")


def bad_images(run):
    return [json.loads(line) for line in (run / "bad_images.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_folder_trains_and_the_truncated_image_is_listed(stage, folder_args, runs):
    call(*stage, *folder_args, "train.steps=8", "name=run")
    (entry,) = bad_images(runs / "run")
    assert entry["id"] == "13.png" and entry["reason"] and "cache" not in entry["reason"]
    assert (runs / "run" / "model.safetensors").exists()
    if stage is STAGE_TWO:
        assert latentdiff.load_run(runs / "run").sample("a red wall", steps=2).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_too_many_bad_images_stop_the_run_and_are_listed(stage, folder_args, runs, refused):
    error = refused(*stage, *folder_args, "data.max_bad_fraction=0.01", "train.steps=8", "name=run")
    assert "13.png" in error and "data.max_bad_fraction" in error


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_run_needs_no_validation_images(stage, folder_args, runs):
    call(*stage, *folder_args[:-1], "data.val_fraction=0", "train.steps=3", "train.val_every=2", "name=run")
    assert not [row for row in metrics_of(runs / "run") if "val_loss" in row or "psnr" in row]
    assert len(column(runs / "run", "lr")) == 3


def test_flips_and_crops_have_their_own_rows_in_the_cache(folder_args, runs, tmp_path):
    argv = ("data.flip=true", "data.crop=random", "cache.copies=4", f"cache.path={tmp_path / 'cache'}")
    call(*STAGE_TWO, *folder_args, *argv, "train.steps=2", "name=run")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["copies"] == 4 and manifest["entries"] % 4 == 0
    assert "shard_00001.safetensors" in files_in(tmp_path / "cache")


def test_bad_images_in_a_worker_are_a_one_line_error(folder_args, runs, refused):
    argv = ("data.max_bad_fraction=1", "train.num_workers=1", "train.steps=8", "name=run")
    folder = Path(folder_args[1].partition("=")[2])
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    error = refused(*STAGE_ONE, *folder_args, *argv)
    assert error.startswith("error: 100 items in a row cannot be read") and "Traceback" not in error


def test_truncated_captions_are_counted_and_logged(folder_args, runs, capsys):
    folder = Path(folder_args[1].partition("=")[2])
    for path in folder.glob("*.txt"):
        path.write_text("a green wall " * 9)
    call(*STAGE_TWO, *folder_args, "conditions.0.max_length=12", "train.steps=1", "name=run")
    out = capsys.readouterr().out
    assert "captions have more tokens than conditions' max_length=12" in out and "max_length=29 would" in out
    call(*STAGE_TWO, *folder_args, "train.steps=1", "name=whole")
    assert "more tokens" not in capsys.readouterr().out


def test_text_without_captions_is_refused_even_with_a_given_tokenizer(folder_args, runs, refused, tmp_path):
    call(*STAGE_TWO, *folder_args, "train.steps=1", "name=run")
    for path in Path(folder_args[1].partition("=")[2]).glob("*.txt"):
        path.unlink()
    tokenizer = f"conditions.0.tokenizer={runs / 'run' / 'tokenizer.json'}"
    assert "no captions" in refused(*STAGE_TWO, *folder_args, tokenizer, "name=b")


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_images_missing_from_the_folder_or_the_metadata_are_logged_and_listed(stage, folder_args, runs, capsys):
    folder = Path(folder_args[1].partition("=")[2])
    table = [{"file_name": f"{i:02d}.png", "text": "a wall"} for i in range(20) if i != 13]
    lines = [json.dumps(row) for row in [*table, {"file_name": "gone.png", "text": "nothing"}]]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    call(*stage, *folder_args, "train.steps=1", "name=run")
    assert "; 1 unreadable or missing, 5 not listed in the metadata" in capsys.readouterr().out
    assert [entry["id"] for entry in bad_images(runs / "run")] == ["gone.png"]
