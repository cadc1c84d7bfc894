"""Both stages on a folder of somebody's own pictures."""

import json
from pathlib import Path

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
    return ("data=Folder", f"data.path={folder}", "data.size=32", "data.max_bad_fraction=0.1", "data.val_fraction=0.1")


def bad(run):
    return [json.loads(line) for line in (run / "bad_images.jsonl").read_text().splitlines()]


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
    error = refused(*stage, *pictures, "data.max_bad_fraction=0.01", "train.steps=8", "name=run")
    assert "13.png" in error and "data.max_bad_fraction" in error


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_run_needs_no_held_out_pictures(stage, pictures, runs):
    call(*stage, *pictures[:-1], "data.val_fraction=0", "train.steps=3", "train.val_every=2", "name=run")
    assert not [row for row in rows(runs / "run") if "val_loss" in row or "psnr" in row]
    assert len(column(runs / "run", "lr")) == 3


def test_flips_and_crops_have_rows_of_their_own_in_the_cache(pictures, runs, tmp_path):
    words = ("data.flip=true", "data.crop=random", "cache.copies=4", f"cache.path={tmp_path / 'cache'}")
    call(*STAGE_TWO, *pictures, *words, "train.steps=2", "name=run")
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["copies"] == 4 and manifest["rows"] % 4 == 0
    assert "shard_00001.safetensors" in written(tmp_path / "cache")


def test_a_bad_picture_met_by_a_worker_ends_in_one_line(pictures, runs, refused):
    words = ("data.max_bad_fraction=1", "train.num_workers=1", "train.steps=8", "name=run")
    folder = Path(pictures[1].partition("=")[2])
    for path in folder.glob("*.png"):
        path.write_bytes(path.read_bytes()[:200])
    error = refused(*STAGE_ONE, *pictures, *words)
    assert error.startswith("error: 100 items in a row cannot be read") and "Traceback" not in error


def test_captions_that_are_cut_are_counted_and_told(pictures, runs, capsys):
    folder = Path(pictures[1].partition("=")[2])
    for path in folder.glob("*.txt"):
        path.write_text("a green wall " * 9)
    call(*STAGE_TWO, *pictures, "conditions.0.max_length=12", "train.steps=1", "name=run")
    out = capsys.readouterr().out
    assert "captions have more tokens than conditions' length=12 holds" in out and "length=29 would" in out
    call(*STAGE_TWO, *pictures, "train.steps=1", "name=whole")
    assert "more tokens" not in capsys.readouterr().out


def test_text_without_captions_is_refused_with_a_given_tokenizer_as_well(pictures, runs, refused, tmp_path):
    call(*STAGE_TWO, *pictures, "train.steps=1", "name=run")
    for path in Path(pictures[1].partition("=")[2]).glob("*.txt"):
        path.unlink()
    given = f"conditions.0.tokenizer={runs / 'run' / 'tokenizer.json'}"
    assert "no captions" in refused(*STAGE_TWO, *pictures, given, "name=b")


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_what_the_metadata_names_in_vain_or_not_at_all_is_told_and_listed(stage, pictures, runs, capsys):
    folder = Path(pictures[1].partition("=")[2])
    rows_of = [{"file_name": f"{i:02d}.png", "text": "a wall"} for i in range(20) if i != 13]
    lines = [json.dumps(row) for row in [*rows_of, {"file_name": "gone.png", "text": "nothing"}]]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    call(*stage, *pictures, "train.steps=1", "name=run")
    assert (
        "; 1 unreadable or missing, 5 not listed in the metadata" in capsys.readouterr().out
    )
    assert [entry["id"] for entry in bad(runs / "run")] == ["gone.png"]
