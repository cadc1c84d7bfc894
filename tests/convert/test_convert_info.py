"""info says what a file or a folder of weights is, and weights say it of themselves."""

import json

import pytest
import torch
from conftest import ROOT, STAGE_ONE, call
from safetensors.torch import save_file

from latentdiff.config import UserError
from latentdiff.convert.__main__ import main
from latentdiff.convert.info import look
from latentdiff.training import checkpoint


def facts(path) -> dict:
    return {name.strip(): str(value) for name, value in look(path)}


def test_a_run_tells_its_recipe_step_and_autoencoder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    call(STAGE_ONE[0], ROOT / STAGE_ONE[1], "train.steps=2", "train.val_every=2", "train.sample_every=2")
    folder = tmp_path / "tiny-autoencoder"
    about = checkpoint.read_metadata(folder / "model.safetensors")
    assert about["modelspec.sai_model_spec"] == "1.0.0" and about["latentdiff.step"] == "2"
    assert (
        about["modelspec.architecture"] == "latent-diffusion/autoencoder" and len(about["latentdiff.autoencoder"]) == 64
    )
    known = facts(folder)
    assert known["kind"] == "a run of latentdiff, stage one: autoencoder" and known["checkpoints"] == "2"
    assert known["latentdiff.recipe"] == known["recipe"] == about["latentdiff.recipe"]
    capsys.readouterr()
    main(["info", str(folder)])
    said = capsys.readouterr().out
    assert "modelspec.title" in said and "32x32" in said and "encoder" in said


def test_foreign_files_are_told_apart(tmp_path):
    state = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)}
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "a.ckpt")
    save_file(state, tmp_path / "a.safetensors", {"modelspec.license": "MIT"})
    (tmp_path / "LICENSE.txt").write_text("...")
    one, other = facts(tmp_path / "a.ckpt"), facts(tmp_path / "a.safetensors")
    assert "layout of the original release" in one["kind"] and one["global_step"] == "5"
    assert one["tensors"] == "1, 864 numbers of float32" and one["licence file"] == "LICENSE.txt"
    assert one["sha256 of the tensors"] == other["sha256 of the tensors"] and other["modelspec.license"] == "MIT"
    assert one["sha256 of the file"] != other["sha256 of the file"]
    save_file({"x": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert facts(tmp_path / "b.safetensors")["kind"] == "tensors of no kind that is known here"


def test_a_folder_of_diffusers_is_told_part_by_part(tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "Pipe", "vae": ["diffusers", "AutoencoderKL"]})
    )
    (tmp_path / "README.md").write_text("---\nlicense: openrail\n---\n# A model\n")
    (vae / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 4}))
    save_file({"encoder.down_blocks.0.x": torch.zeros(2)}, vae / "diffusion_pytorch_model.safetensors")
    known = facts(tmp_path)
    assert known["part"] == "vae: diffusers AutoencoderKL" and known["latent_channels"] == "4"
    assert known["model card"] == "license: openrail"
    assert facts(vae)["path"] == str(vae)


@pytest.mark.parametrize("name", ["notes.txt", "empty", "nothing"])
def test_what_is_none_of_these_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of weights|neither a run|no run at"):
        look(tmp_path / name)
