"""Checkpoints of the original release become runs, and runs become checkpoints, bit for bit."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import call
from safetensors.torch import load_file

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis import key_map
from latentdiff.convert.compvis.model_config import original_of
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece
from latentdiff.load import load_run

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "parity"))

TOKENIZER = CaptionTokenizer(wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), 8)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "star"]
UNET = {"image_size": 8, "in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1,
        "attention_resolutions": [2], "channel_mult": [1, 2], "num_heads": 2}  # fmt: skip
KLConfig = {"double_z": True, "z_channels": 4, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
      "num_res_blocks": 1, "attn_resolutions": [8], "dropout": 0.0}  # fmt: skip
XATTN = {"use_spatial_transformer": True, "context_dim": 16}
BERT = {"n_embed": 16, "n_layer": 1, "vocab_size": 8, "max_seq_len": 8}
FREE = {"cond_stage_config": "__is_unconditional__"}


def stage(kind: str, key: str, **params) -> dict:
    return {
        "cond_stage_key": key,
        "cond_stage_config": {"target": f"ldm.modules.encoders.modules.{kind}", "params": params},
    }


FAMILIES = {  # what differs from an unconditional model: the U-Net, the rest
    "unconditional": ({"num_head_channels": 16}, FREE),
    "churches": (
        {"use_scale_shift_norm": True, "resblock_updown": True},
        FREE | {"scale_by_std": True, "loss_type": "l1"},
    ),
    "text": (
        XATTN | {"num_head_channels": 16},
        stage("BERTEmbedder", "caption", **BERT) | {"scale_factor": 0.18215, "use_ema": False},
    ),
    "class": (XATTN | {"num_heads": 1}, stage("ClassEmbedder", "class_label", embed_dim=16, n_classes=7)),
    "layout": (XATTN, stage("BERTEmbedder", "coordinates_bbox", **BERT | {"vocab_size": 50, "use_tokenizer": False})),
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
    "vq": ({}, FREE),
    "pixels": ({}, FREE | {"first_stage_config": {"target": "ldm.models.autoencoder.IdentityFirstStage"}}),
}


def config_of(family: str) -> dict:
    unet, params = FAMILIES[family]
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 3, "ddconfig": KLConfig}}
    if family in ("vq", "inpainting"):
        first["target"] = "ldm.models.autoencoder.VQModelInterface"
        first["params"] = {
            "embed_dim": 3,
            "n_embed": 20,
            "ddconfig": KLConfig | {"double_z": False, "attn_type": "none"},
        }
    params = {"first_stage_config": first, "image_size": 8, "channels": 3, "linear_start": 0.0015} | params
    params |= {"linear_end": 0.0195, "conditioning_key": "crossattn"} if "context_dim" in unet else {}
    params["unet_config"] = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": UNET | unet}
    return {"model": {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": params}}


def checkpoint_of(family: str) -> dict[str, torch.Tensor]:
    """A checkpoint of a tiny model in the original's layout, all of it noise, with its schedule and its leftovers."""
    original = original_of(config_of(family))
    first_stage = Autoencoder(original.first_stage.autoencoder)
    model = build_diffusion(original.diffusion, first_stage, TOKENIZER)
    parameters = dict(model.named_parameters())
    places = key_map.model_places(model, original.new_order)
    wanted = {place.name: place.shape(parameters[ours].shape) for ours, place in places.items()}
    first = {name: value.shape for name, value in first_stage.named_parameters()}
    wanted |= {f"first_stage_model.{name}": shape for name, shape in first.items()}
    if family in ("text", "layout"):
        vocab, width = wanted["cond_stage_model.transformer.token_emb.weight"]
        wanted |= {"cond_stage_model.transformer.to_logits.weight": (vocab, width)}
        wanted |= {"cond_stage_model.transformer.to_logits.bias": (vocab,)}
    if family in ("churches", "unconditional"):
        wanted |= {key_map.average_name(name): shape for name, shape in wanted.items() if name.startswith("model.")}
    generator = torch.Generator().manual_seed(len(family))
    state = {name: torch.randn(*shape, generator=generator) / 8 for name, shape in wanted.items()}
    if family == "inpainting":
        twin = {name: value for name, value in state.items() if name.startswith("first_stage_model.")}
        state |= {name.replace("first_stage", "cond_stage"): value for name, value in twin.items()}
    if family in ("churches", "unconditional"):
        state["model_ema.decay"] = torch.tensor(0.9999)
        state["model_ema.num_updates"] = torch.tensor(70, dtype=torch.int32)
    if family == "churches":
        state["scale_factor"] = torch.tensor(0.2345678)
    return state | key_map.schedule_buffers(model.schedule)


LEFTOVERS = {"ddim_sigmas": torch.ones(3), "loss.logvar": torch.zeros(1), "lvlb_weights": torch.ones(1000)}


def convert(folder: Path, family: str, state: dict, *words: str, **more) -> Path:
    """The run that the command makes of a checkpoint."""
    torch.save({"state_dict": state} | more, folder / "model.ckpt")
    (folder / "config.yaml").write_text(json.dumps(config_of(family)))
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    vocab = ["--vocab", str(folder / "vocab.txt")] if family == "text" else []
    run = folder / "run"
    main(
        [
            "compvis",
            str(folder / "model.ckpt"),
            "--config",
            str(folder / "config.yaml"),
            "--output",
            str(run),
            *vocab,
            *words,
        ]
    )
    return run


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_becomes_a_run_and_that_a_checkpoint_bit_for_bit(tmp_path, family, capsys):
    state = checkpoint_of(family)
    run = convert(tmp_path, family, state | LEFTOVERS, global_step=70)
    said = capsys.readouterr().out
    assert "unknown" not in said and "WARNING" not in said
    assert load_run(run).size == ((8, 8) if family == "pixels" else (16, 16))
    main(["compvis-export", str(run), str(tmp_path / "back.safetensors")])
    back = load_file(tmp_path / "back.safetensors")
    averages = {name: key_map.average_name(name) for name in state}
    expected = {name: state.get(averages[name], value) for name, value in state.items()}  # averaged where there is one
    expected |= {name: torch.zeros_like(value) for name, value in state.items() if ".to_logits." in name}
    extra = back.keys() - expected.keys()
    assert not expected.keys() - back.keys() and all(name.startswith("model_ema.") for name in extra)
    different = [name for name, value in expected.items() if not torch.equal(back[name], value)]
    assert not different

    again = tmp_path / "again"
    vocab = ["--vocab", str(tmp_path / "vocab.txt")] if family == "text" else []
    config = ["--config", str(tmp_path / "back.yaml")]
    main(["compvis", str(tmp_path / "back.safetensors"), "--output", str(again), *config, *vocab])
    for name in ("model.safetensors", "autoencoder/model.safetensors"):
        one, other = load_file(run / name), load_file(again / name)
        assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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
def test_a_converted_run_draws(tmp_path, family):
    model = load_run(convert(tmp_path, family, checkpoint_of(family)))
    z = list(model.draw(FIELDS.get(family, {}), [0], (3, 8, 8), replace(model.sampling, steps=2, guidance_scale=1.0)))[
        -1
    ]
    x = model.autoencoder.decode(z)
    assert x.shape[0] == 1 and x.isfinite().all()


def test_a_run_starts_from_a_converted_one_with_its_words_and_its_autoencoder(tmp_path, runs):
    source = convert(tmp_path, "text", checkpoint_of("text"))
    same = ("conditions.0.dim=16", "conditions.0.heads=8", "conditions.0.head_dim=64", "conditions.0.max_length=8",
            "conditions.0.vocab_size=8", "unet.channels=32", "unet.head_channels=16",
            "unet.norm_groups=32")  # fmt: skip
    words = ("train.steps=2", "train.lr=1e-9", "autoencoder=", f"init={source}")
    call("train_diffusion", "recipes/diffusion/tiny.py", *same, *words, "name=fine")
    ours, theirs = load_run(runs / "fine"), load_run(source)
    taken = theirs.state_dict()
    assert all(torch.allclose(x, taken[name], atol=1e-6) for name, x in ours.state_dict().items())
    assert ours.autoencoder.weights_hash() == theirs.autoencoder.weights_hash()
    assert (runs / "fine" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()
