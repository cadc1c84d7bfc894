"""Checkpoints and configs that cannot be converted are refused with the reason, and no files are left."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from test_convert_compvis import UNUSED, checkpoint_of, config_of, convert

from latentdiff import load_run
from latentdiff.config import UserError
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis.model_config import read_model


def no_files_left(folder) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith(("run", ".run"))]


def test_unknown_tensors_are_listed_and_not_imported(tmp_path, capsys):
    unknown = {"model.diffusion_model.odd.weight": torch.ones(1), "strange": torch.ones(2)}
    convert(tmp_path, "vq", checkpoint_of("vq") | UNUSED | unknown)
    output = capsys.readouterr().out
    assert "not imported, unknown (1): strange" in output and "ddim_sigmas" in output and "loss.logvar" in output
    assert "model.diffusion_model.odd.weight" in output


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vq", "first_stage_model.quantize.embedding.weight"),
        ("class", "cond_stage_model.embedding.weight"),
        ("unconditional", "model_ema.diffusion_modelout2bias"),
        ("churches", "scale_factor"),
    ],
)
def test_missing_tensors_are_named_and_refused(tmp_path, family, name):
    state = checkpoint_of(family)
    del state[name]
    with pytest.raises(UserError, match=f"1 tensors are missing: {name}"):
        convert(tmp_path, family, state)
    assert no_files_left(tmp_path)


@pytest.mark.parametrize("removed", ["first_stage_model.", "cond_stage_model."])
def test_inpainting_needs_only_one_of_its_two_copies_of_the_first_stage(tmp_path, removed, capsys):
    state = checkpoint_of("inpainting")
    expected = load_run(convert(tmp_path, "inpainting", state)).state_dict()
    (tmp_path / "one").mkdir()
    one_copy = {name: value for name, value in state.items() if not name.startswith(removed)}
    actual = load_run(convert(tmp_path / "one", "inpainting", one_copy)).state_dict()
    assert expected.keys() == actual.keys() and all(torch.equal(expected[name], actual[name]) for name in expected)
    assert "unknown" not in capsys.readouterr().out


def test_a_first_stage_is_extracted_from_a_diffusion_checkpoint(tmp_path):
    state = checkpoint_of("vq")
    torch.save(state, tmp_path / "model.ckpt")
    config = config_of("vq")["model"]["params"]["first_stage_config"]
    (tmp_path / "config.yaml").write_text(json.dumps({"model": config}))
    main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output",
          str(tmp_path / "run")])  # fmt: skip
    model = load_run(tmp_path / "run")
    assert torch.equal(model.encoder.conv_in.weight, state["first_stage_model.encoder.conv_in.weight"])


def test_half_precision_is_kept_in_the_file_and_computes_in_float32(tmp_path):
    state = {name: value.half() if value.ndim > 1 else value for name, value in checkpoint_of("vq").items()}
    model = load_run(convert(tmp_path, "vq", state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.unet.conv_in.weight.half(), state["model.diffusion_model.input_blocks.0.0.weight"])


def test_a_different_schedule_in_the_checkpoint_is_a_warning(tmp_path, capsys):
    convert(tmp_path, "vq", checkpoint_of("vq") | {"alphas_cumprod": torch.linspace(1, 0, 1000)})
    assert (
        "WARNING: the schedule of the config is used; the checkpoint differs in alphas_cumprod"
        in capsys.readouterr().out
    )


def test_a_text_model_needs_its_vocabulary(tmp_path):
    torch.save(checkpoint_of("text"), tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(json.dumps(config_of("text")))
    argv = ["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output",
            str(tmp_path / "run")]  # fmt: skip
    with pytest.raises(UserError, match="--vocab vocab.txt"):
        main(argv)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(20))]))
    with pytest.raises(UserError, match="has 24 tokens; the model has only 8"):
        main([*argv, "--vocab", str(tmp_path / "vocab.txt")])
    assert no_files_left(tmp_path)


CHANGES = {  # a path in the config -> a value that cannot be converted, the error
    "model.params.unet_config.params.dims": (3, "dims is 3"),
    "model.params.unet_config.params.conv_resample": (False, "conv_resample is False"),
    "model.params.unet_config.params.in_channels": (9, "in_channels is 9"),
    "model.params.unet_config.params.num_heads": (-1, "neither num_heads nor num_head_channels"),
    "model.params.unet_config.params.num_res_blocks": ([1, 2], "num_res_blocks is .* whole number"),
    "model.params.unet_config.target": ("some.Transformer", "must be UNetModel"),
    "model.params.first_stage_config.params.ddconfig.attn_type": ("linear", "must be one of vanilla, none"),
    "model.params.first_stage_config.params.ddconfig.tanh_out": (True, "tanh_out is True"),
    "model.params.first_stage_config.target": ("some.VAE", "first_stage_config.target is VAE"),
    "model.params.beta_schedule": ("quartic", "must be one of linear, sqrt_linear"),
    "model.params.parameterization": ("v", "must be one of eps, x0"),
    "model.params.conditioning_key": ("hybrid", "must be .*ClassEmbedder, .* with crossattn"),
    "model.target": ("some.Model", "must be one of .*VQModel.*LatentDiffusion, DDPM"),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_config_that_cannot_be_converted_is_refused_by_field(path):
    value, message = CHANGES[path]
    config = copy.deepcopy(config_of("class" if path.endswith("conditioning_key") else "unconditional"))
    *sections, name = path.split(".")
    if name == "num_heads":
        config["model"]["params"]["unet_config"]["params"].pop("num_head_channels")
    node = config
    for section in sections:
        node = node[section]
    node[name] = value
    read_model(config_of("unconditional"))  # without the change it is read
    with pytest.raises(UserError, match=message):
        read_model(config)


@pytest.mark.parametrize("text", ["[1, 2", "42", "model: {target: x.VQModel}", "{}"])
def test_an_invalid_config_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    torch.save(checkpoint_of("vq"), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="config|has no|must be"):
        main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output",
              str(tmp_path / "run")])  # fmt: skip
    assert no_files_left(tmp_path)


class Calls:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_command_refuses_a_hostile_pickle_with_one_line_and_code_2(tmp_path):
    torch.save({"state_dict": checkpoint_of("vq"), "extra": Calls(tmp_path / "ran")}, tmp_path / "model.ckpt")
    argv = ["compvis", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "run")]
    result = subprocess.run(
        [sys.executable, "-m", "latentdiff.convert", *argv], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert "refused: opening it would call posix.mkdir" in result.stderr
    assert not (tmp_path / "ran").exists() and no_files_left(tmp_path)


def test_a_run_without_counterpart_in_the_release_is_not_exported(tmp_path):
    run = convert(tmp_path, "unconditional", checkpoint_of("unconditional"))
    recipe = json.loads((run / "recipe.json").read_text())
    changes = {"schedule": {"kind": "flow"}, "objective": {"prediction": "v"}, "unet": {"norm_groups": 16}}
    for section, change in changes.items():
        setting = "=".join(map(str, *change.items()))
        (run / "recipe.json").write_text(json.dumps(recipe | {section: recipe[section] | change}))
        with pytest.raises(UserError, match=f"{section}.{setting}.* has no counterpart"):
            main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
        assert not (tmp_path / "back.safetensors").exists()


def test_inpainting_with_every_pixel_of_the_mask_is_not_exported(tmp_path):
    run = convert(tmp_path, "inpainting", checkpoint_of("inpainting"))
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["conditions"][0]["every_pixel"] = True
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="every_pixel=true .*has no counterpart"):
        main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
    assert not (tmp_path / "back.safetensors").exists()


def test_an_existing_output_and_invalid_arguments_are_refused_first(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("")
    with pytest.raises(UserError, match="already exists"):
        main(["compvis", str(tmp_path / "nothing.ckpt"), "--output", str(tmp_path / "run")])
    with pytest.raises(UserError, match="must be ema or raw"):
        main(["compvis", "a", "--output", "b", "--weights", "best"])
    for argv in ([], ["compvise"], ["compvis", "a"], ["compvis", "a", "--output"], ["info"], ["info", "a", "b"]):
        with pytest.raises(UserError, match="must be one of|--help lists"):
            main(argv)
