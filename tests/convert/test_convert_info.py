"""info describes files and folders of weights."""

import json

import pytest
import torch
from conftest import ROOT, STAGE_ONE, call
from safetensors.torch import save_file

from latentdiff.config import UserError
from latentdiff.convert.__main__ import main
from latentdiff.convert.info import describe
from latentdiff.training import checkpoint


def info(path) -> dict:
    return {label.strip(): str(value) for label, value in describe(path)}


def test_a_run_has_its_recipe_step_and_autoencoder_in_its_metadata(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path))
    call(STAGE_ONE[0], ROOT / STAGE_ONE[1], "train.steps=2", "train.val_every=2", "train.sample_every=2")
    folder = tmp_path / "tiny-autoencoder"
    metadata = checkpoint.read_metadata(folder / "model.safetensors")
    assert metadata["modelspec.sai_model_spec"] == "1.0.0" and metadata["latentdiff.step"] == "2"
    assert (
        metadata["modelspec.architecture"] == "latent-diffusion/autoencoder"
        and len(metadata["latentdiff.autoencoder"]) == 64
    )
    lines = info(folder)
    assert lines["kind"] == "a run of latentdiff, stage one: autoencoder" and lines["checkpoints"] == "2"
    assert lines["latentdiff.recipe"] == lines["recipe"] == metadata["latentdiff.recipe"]
    capsys.readouterr()
    main(["info", str(folder)])
    output = capsys.readouterr().out
    assert "modelspec.title" in output and "32x32" in output and "encoder" in output


def test_files_of_other_projects_are_distinguished(tmp_path):
    state = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 3, 3, 3)}
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "a.ckpt")
    save_file(state, tmp_path / "a.safetensors", {"modelspec.license": "MIT"})
    (tmp_path / "LICENSE.txt").write_text("...")
    pickle, safetensors = info(tmp_path / "a.ckpt"), info(tmp_path / "a.safetensors")
    assert "format of the original release" in pickle["content"] and pickle["global_step"] == "5"
    assert pickle["tensors"] == "1, 864 parameters in float32" and pickle["licence file"] == "LICENSE.txt"
    assert pickle["sha256 of the tensors"] == safetensors["sha256 of the tensors"]
    assert safetensors["modelspec.license"] == "MIT"
    assert pickle["sha256 of the file"] != safetensors["sha256 of the file"]
    save_file({"x": torch.zeros(2)}, tmp_path / "b.safetensors")
    assert info(tmp_path / "b.safetensors")["content"] == "unknown"


def test_a_folder_of_diffusers_is_described_component_by_component(tmp_path):
    vae = tmp_path / "vae"
    vae.mkdir()
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "Pipe", "vae": ["diffusers", "AutoencoderKL"]})
    )
    (tmp_path / "README.md").write_text("---\nlicense: openrail\n---\n# A model\n")
    (vae / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "latent_channels": 4}))
    save_file({"encoder.down_blocks.0.x": torch.zeros(2)}, vae / "diffusion_pytorch_model.safetensors")
    lines = info(tmp_path)
    assert lines["component"] == "vae: diffusers AutoencoderKL" and lines["latent_channels"] == "4"
    assert lines["model card"] == "license: openrail"
    assert info(vae)["path"] == str(vae)


@pytest.mark.parametrize("name", ["notes.txt", "empty", "nothing"])
def test_anything_else_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not a file of weights|no recipe.json or config.json|no run at"):
        describe(tmp_path / name)
