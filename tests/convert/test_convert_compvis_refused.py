"""What a checkpoint or its config cannot be is said in one line, and nothing is left behind."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from test_convert_compvis import LEFTOVERS, checkpoint_of, config_of, convert

from latentdiff.config import UserError
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis.model_config import original_of
from latentdiff.load import load_run


def nothing_left(folder) -> bool:
    return not [path for path in folder.iterdir() if path.name.startswith(("run", ".run"))]


def test_unknown_tensors_are_listed_and_left_out(tmp_path, capsys):
    more = {"model.diffusion_model.odd.weight": torch.ones(1), "strange": torch.ones(2)}
    convert(tmp_path, "vq", checkpoint_of("vq") | LEFTOVERS | more)
    said = capsys.readouterr().out
    assert "left out, unknown (1): strange" in said and "ddim_sigmas" in said and "loss.logvar" in said
    assert "model.diffusion_model.odd.weight" in said


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("vq", "first_stage_model.quantize.embedding.weight"),
        ("class", "cond_stage_model.embedding.weight"),
        ("unconditional", "model_ema.diffusion_modelout2bias"),
        ("churches", "scale_factor"),
    ],
)
def test_what_is_missing_is_named_and_nothing_is_guessed(tmp_path, family, name):
    state = checkpoint_of(family)
    del state[name]
    with pytest.raises(UserError, match=f"1 tensors are missing: {name}"):
        convert(tmp_path, family, state)
    assert nothing_left(tmp_path)


@pytest.mark.parametrize("gone", ["first_stage_model.", "cond_stage_model."])
def test_inpainting_needs_its_first_stage_only_once(tmp_path, gone, capsys):
    state = checkpoint_of("inpainting")
    whole = load_run(convert(tmp_path, "inpainting", state)).state_dict()
    (tmp_path / "less").mkdir()
    less = {name: value for name, value in state.items() if not name.startswith(gone)}
    half = load_run(convert(tmp_path / "less", "inpainting", less)).state_dict()
    assert whole.keys() == half.keys() and all(torch.equal(whole[name], half[name]) for name in whole)
    assert "unknown" not in capsys.readouterr().out


def test_a_first_stage_is_taken_out_of_a_whole_model(tmp_path):
    state = checkpoint_of("vq")
    torch.save(state, tmp_path / "model.ckpt")
    first = config_of("vq")["model"]["params"]["first_stage_config"]
    (tmp_path / "config.yaml").write_text(json.dumps({"model": first}))
    main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output",
          str(tmp_path / "run")])  # fmt: skip
    model = load_run(tmp_path / "run")
    assert torch.equal(model.encoder.conv_in.weight, state["first_stage_model.encoder.conv_in.weight"])


def test_half_precision_is_kept_in_the_file_and_computes_in_float32(tmp_path):
    state = {name: value.half() if value.ndim > 1 else value for name, value in checkpoint_of("vq").items()}
    model = load_run(convert(tmp_path, "vq", state))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.unet.conv_in.weight.half(), state["model.diffusion_model.input_blocks.0.0.weight"])


def test_another_schedule_in_the_file_is_told(tmp_path, capsys):
    convert(tmp_path, "vq", checkpoint_of("vq") | {"alphas_cumprod": torch.linspace(1, 0, 1000)})
    assert "WARNING: the config's schedule is used; the file's own differs in alphas_cumprod" in capsys.readouterr().out


def test_a_text_model_needs_its_words(tmp_path):
    torch.save(checkpoint_of("text"), tmp_path / "model.ckpt")
    (tmp_path / "config.yaml").write_text(json.dumps(config_of("text")))
    words = [str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]
    with pytest.raises(UserError, match="--vocab vocab.txt"):
        main(["compvis", *words])
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(str, range(20))]))
    with pytest.raises(UserError, match="has 24 words; the model knows 8"):
        main(["compvis", *words, "--vocab", str(tmp_path / "vocab.txt")])
    assert nothing_left(tmp_path)


CHANGES = {  # a path in the config, a value that our networks have no such variant for, what is said
    "model.params.unet_config.params.dims": (3, "dims is 3"),
    "model.params.unet_config.params.conv_resample": (False, "conv_resample is False"),
    "model.params.unet_config.params.in_channels": (9, "in_channels is 9"),
    "model.params.unet_config.params.num_heads": (-1, "neither num_heads nor num_head_channels"),
    "model.params.unet_config.params.num_res_blocks": ([1, 2], "num_res_blocks is .* whole number"),
    "model.params.unet_config.target": ("some.Transformer", "only UNetModel is known"),
    "model.params.first_stage_config.params.ddconfig.attn_type": ("linear", "must be vanilla or none"),
    "model.params.first_stage_config.params.ddconfig.tanh_out": (True, "tanh_out is True"),
    "model.params.first_stage_config.target": ("some.VAE", "first_stage_config.target is VAE"),
    "model.params.beta_schedule": ("quartic", "known are linear, sqrt_linear"),
    "model.params.parameterization": ("v", "known are eps, x0"),
    "model.params.conditioning_key": ("hybrid", "known are .*ClassEmbedder under crossattn"),
    "model.target": ("some.Model", "known are .*VQModel.*LatentDiffusion, DDPM"),
}


@pytest.mark.parametrize("path", CHANGES)
def test_a_config_that_ours_cannot_express_is_refused_by_field(path):
    value, said = CHANGES[path]
    config = copy.deepcopy(config_of("class" if path.endswith("conditioning_key") else "unconditional"))
    *places, name = path.split(".")
    if name == "num_heads":
        config["model"]["params"]["unet_config"]["params"].pop("num_head_channels")
    node = config
    for place in places:
        node = node[place]
    node[name] = value
    original_of(config_of("unconditional"))  # as it was, it is read
    with pytest.raises(UserError, match=said):
        original_of(config)


@pytest.mark.parametrize("text", ["[1, 2", "42", "model: {target: x.VQModel}", "{}"])
def test_a_config_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    torch.save(checkpoint_of("vq"), tmp_path / "model.ckpt")
    with pytest.raises(UserError, match="config|has no|must be"):
        main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--output",
              str(tmp_path / "run")])  # fmt: skip
    assert nothing_left(tmp_path)


class Calls:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_the_command_refuses_a_hostile_pickle_with_one_line_and_code_2(tmp_path):
    torch.save({"state_dict": checkpoint_of("vq"), "extra": Calls(tmp_path / "ran")}, tmp_path / "model.ckpt")
    words = ["compvis", str(tmp_path / "model.ckpt"), "--output", str(tmp_path / "run")]
    done = subprocess.run(
        [sys.executable, "-m", "latentdiff.convert", *words], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "refused: opening it would call posix.mkdir" in done.stderr
    assert not (tmp_path / "ran").exists() and nothing_left(tmp_path)


def test_a_run_that_the_release_has_no_words_for_is_not_exported(tmp_path):
    run = convert(tmp_path, "unconditional", checkpoint_of("unconditional"))
    recipe = json.loads((run / "recipe.json").read_text())
    changes = {"schedule": {"kind": "flow"}, "objective": {"prediction": "v"}, "unet": {"norm_groups": 16}}
    for place, value in changes.items():
        said = "=".join(map(str, *value.items()))
        (run / "recipe.json").write_text(json.dumps(recipe | {place: recipe[place] | value}))
        with pytest.raises(UserError, match=f"nothing like .*{said}"):
            main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
        assert not (tmp_path / "back.safetensors").exists()


def test_a_mask_shown_whole_is_not_exported(tmp_path):
    run = convert(tmp_path, "inpainting", checkpoint_of("inpainting"))
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["conditions"][0]["every_pixel"] = True
    (run / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match="nothing like every_pixel=true"):
        main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
    assert not (tmp_path / "back.safetensors").exists()


def test_a_name_that_exists_and_a_wrong_word_are_refused_first(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "x").write_text("")
    with pytest.raises(UserError, match="exists already"):
        main(["compvis", str(tmp_path / "nothing.ckpt"), "--output", str(tmp_path / "run")])
    with pytest.raises(UserError, match="must be ema or raw"):
        main(["compvis", "a", "--output", "b", "--weights", "best"])
    for words in ([], ["compvise"], ["compvis", "a"], ["compvis", "a", "--output"], ["info"], ["info", "a", "b"]):
        with pytest.raises(UserError, match="needs one of|--help lists"):
            main(words)
