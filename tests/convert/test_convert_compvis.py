"""Checkpoints of the original release <-> runs, bit for bit."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call
from safetensors.torch import load_file

from latentdiff import load_run
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis.key_maps import ema_name, model_key_map, schedule_buffers
from latentdiff.convert.compvis.model_config import read_model
from latentdiff.convert.key_map import shapes_of
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece

VOCABULARY = [*SPECIALS, "a", "red", "star"]
TOKENIZER = CaptionTokenizer(wordpiece(SPECIALS), 8)
UNET = {"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1,
        "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 2}  # fmt: skip
DDCONFIG = {"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}  # fmt: skip
CROSS_ATTENTION = {"use_spatial_transformer": True, "context_dim": 16}
BERT = {"n_embed": 16, "n_layer": 1, "vocab_size": 8, "max_seq_len": 8}
UNCONDITIONAL = {"cond_stage_config": "__is_unconditional__"}


def stage(kind: str, key: str, **params) -> dict:
    return {
        "cond_stage_key": key,
        "cond_stage_config": {"target": f"ldm.modules.encoders.modules.{kind}", "params": params},
    }


FAMILIES = {  # parameters of the U-Net and of the model that differ from the defaults below
    "unconditional": ({"num_head_channels": 16}, UNCONDITIONAL),
    "churches": (
        {"use_scale_shift_norm": True, "resblock_updown": True},
        UNCONDITIONAL | {"scale_by_std": True, "loss_type": "l1"},
    ),
    "text": (
        CROSS_ATTENTION | {"num_head_channels": 16},
        stage("BERTEmbedder", "caption", **BERT) | {"scale_factor": 0.18215, "use_ema": False},
    ),
    "class": (CROSS_ATTENTION | {"num_heads": 1}, stage("ClassEmbedder", "class_label", embed_dim=16, n_classes=7)),
    "layout": (
        CROSS_ATTENTION,
        stage("BERTEmbedder", "coordinates_bbox", **BERT | {"vocab_size": 50, "use_tokenizer": False}),
    ),
    "semantic": (
        {"in_channels": 5},
        stage("SpatialRescaler", "segmentation", n_stages=1, in_channels=6, out_channels=2),
    ),
    "low_res": ({"in_channels": 6}, stage("Identity", "LR_image")),
    "inpainting": ({"in_channels": 7}, {"cond_stage_key": "masked_image", "cond_stage_config": "__is_first_stage__"}),
    "adm": (
        {"num_classes": 5, "use_new_attention_order": True},
        stage("Identity", "class_label") | {"conditioning_key": "adm"},
    ),
    "vq": ({}, UNCONDITIONAL),
    "pixels": ({}, UNCONDITIONAL | {"first_stage_config": {"target": "ldm.models.autoencoder.IdentityFirstStage"}}),
}


def config_of(family: str) -> dict:
    unet, params = FAMILIES[family]
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 3, "ddconfig": DDCONFIG}}
    if family in ("vq", "inpainting"):
        first["target"] = "ldm.models.autoencoder.VQModelInterface"
        first["params"] = {
            "embed_dim": 3,
            "n_embed": 20,
            "ddconfig": DDCONFIG | {"double_z": False, "attn_type": "none"},
        }
    params = {"first_stage_config": first, "image_size": 8, "channels": 3, "linear_start": 0.0015} | params
    params |= {"linear_end": 0.0195, "conditioning_key": "crossattn"} if "context_dim" in unet else {}
    params["unet_config"] = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": UNET | unet}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def checkpoint_of(family: str) -> dict[str, torch.Tensor]:
    """A checkpoint of a small model with random weights in the original's format."""
    config = read_model(config_of(family))
    autoencoder = Autoencoder(config.first_stage.autoencoder)
    model = build_diffusion(config.diffusion, autoencoder, TOKENIZER)
    parameters = shapes_of(model)
    keys = model_key_map(model, config.new_attention_order)
    shapes = {entry.src[0]: entry.src_shape(parameters[dst]) for dst, entry in keys.items()}
    shapes |= {f"first_stage_model.{name}": shape for name, shape in shapes_of(autoencoder).items()}
    if family in ("text", "layout"):
        vocab_size, width = shapes["cond_stage_model.transformer.token_emb.weight"]
        shapes |= {"cond_stage_model.transformer.to_logits.weight": (vocab_size, width)}
        shapes |= {"cond_stage_model.transformer.to_logits.bias": (vocab_size,)}
    if family in ("churches", "unconditional"):
        shapes |= {ema_name(name): shape for name, shape in shapes.items() if name.startswith("model.")}
    generator = torch.Generator().manual_seed(len(family))
    state = {name: torch.randn(*shape, generator=generator) / 8 for name, shape in shapes.items()}
    if family == "inpainting":
        first_stage = {name: value for name, value in state.items() if name.startswith("first_stage_model.")}
        state |= {name.replace("first_stage", "cond_stage"): value for name, value in first_stage.items()}
    if family in ("churches", "unconditional"):
        state["model_ema.decay"] = torch.tensor(0.9999)
        state["model_ema.num_updates"] = torch.tensor(70, dtype=torch.int32)
    if family == "churches":
        state["scale_factor"] = torch.tensor(0.2345678)
    return state | schedule_buffers(model.schedule)


UNUSED = {"ddim_sigmas": torch.ones(3), "loss.logvar": torch.zeros(1), "lvlb_weights": torch.ones(1000)}


def convert(folder: Path, family: str, state: dict, **content) -> Path:
    """The run of a checkpoint; content: beside its state_dict."""
    torch.save({"state_dict": state} | content, folder / "model.ckpt")
    (folder / "config.yaml").write_text(json.dumps(config_of(family)))
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    vocab = ["--vocab", str(folder / "vocab.txt")] if family == "text" else []
    run = folder / "run"
    config = ["--config", str(folder / "config.yaml")]
    main(["compvis", str(folder / "model.ckpt"), "--output", str(run), *config, *vocab])
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_is_the_same_after_import_and_export(tmp_path, family, capsys):
    state = checkpoint_of(family)
    run = convert(tmp_path, family, state | UNUSED, global_step=70)
    output = capsys.readouterr().out
    assert "unknown" not in output and "WARNING" not in output
    assert load_run(run).image_size == ((8, 8) if family == "pixels" else (16, 16))
    main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
    back = load_file(tmp_path / "back.safetensors")
    expected = {name: state.get(ema_name(name), value) for name, value in state.items()}  # EMA weights if there are any
    expected |= {name: torch.zeros_like(value) for name, value in state.items() if ".to_logits." in name}
    assert not expected.keys() - back.keys()
    assert all(name.startswith("model_ema.") for name in back.keys() - expected.keys())
    different = [name for name, value in expected.items() if not torch.equal(back[name], value)]
    assert not different

    again = tmp_path / "again"
    vocab = ["--vocab", str(tmp_path / "vocab.txt")] if family == "text" else []
    config = ["--config", str(tmp_path / "back.yaml")]
    main(["compvis", str(tmp_path / "back.safetensors"), "--output", str(again), *config, *vocab])
    for name in ("model.safetensors", "autoencoder/model.safetensors"):
        first, second = load_file(run / name), load_file(again / name)
        assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


FIELDS = {
    "text": {"tokens": torch.tensor([[2, 5, 6, 7, 3, 0, 0, 0]])},
    "class": {"label": torch.tensor([3])},
    "adm": {"label": torch.tensor([3])},
    "layout": {"boxes": torch.tensor([[[0.1, 0.2, 0.5, 0.6, 4]]])},
    "semantic": {"segmentation": torch.arange(256).view(1, 16, 16) % 6},
    "low_res": {"low_res": torch.arange(192, dtype=torch.uint8).view(1, 8, 8, 3)},
    "inpainting": {"image": torch.zeros(1, 16, 16, 3, dtype=torch.uint8), "mask": torch.eye(16)[None]},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_converted_run_can_be_sampled(tmp_path, family):
    pipeline = load_run(convert(tmp_path, family, checkpoint_of(family)))
    settings = replace(pipeline.model.sampling, steps=2, guidance_scale=1.0)
    *_, z = pipeline.latents(FIELDS.get(family, {}), [0], settings)
    assert z.shape == (1, 3, 8, 8)
    x = pipeline.autoencoder.decode(z)
    assert x.shape[0] == 1 and x.isfinite().all()


def test_init_with_a_converted_run_takes_its_weights_tokenizer_and_autoencoder(tmp_path, runs):
    source = convert(tmp_path, "text", checkpoint_of("text"))
    network = ("conditions.0.dim=16", "conditions.0.heads=8", "conditions.0.head_dim=64", "conditions.0.max_length=8",
            "conditions.0.vocab_size=8", "unet.channels=32", "unet.head_channels=16",
            "unet.norm_groups=32")  # fmt: skip
    options = ("train.steps=2", "train.lr=1e-9", "autoencoder=", f"init={source}")
    call("train_diffusion", "recipes/diffusion/tiny.py", *network, *options, "name=fine")
    trained, converted = load_run(runs / "fine"), load_run(source)
    expected = converted.model.state_dict()
    assert all(torch.allclose(x, expected[name], atol=1e-6) for name, x in trained.model.state_dict().items())
    assert trained.autoencoder.weights_hash() == converted.autoencoder.weights_hash()
    assert (runs / "fine" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
