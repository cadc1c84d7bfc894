"""A checkpoint of the original release, imported by the command, computes the original release's outputs."""

import json
from pathlib import Path

import pytest
import torch
import vectors
from torch import Tensor

from latentdiff import load_run
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.conditioning.cond import Cond
from latentdiff.convert import key_map
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis.key_maps import ema_name, unet_key_map
from latentdiff.diffusion.unet import UNet, UNetConfig

DDCONFIG = {"double_z": True, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
            "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
UNCONDITIONAL = "__is_unconditional__"


def convert(folder: Path, config: dict, state: dict[str, Tensor], *options: str):
    torch.save({"state_dict": state}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(json.dumps({"model": config}))
    paths = ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    main(["compvis", str(folder / "model.ckpt"), *paths, *options])
    return load_run(folder / "run")


def latent_diffusion(unet: dict, **params) -> dict:
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 3, "ddconfig": DDCONFIG}}
    unet = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}
    networks = {"first_stage_config": first, "unet_config": unet, "image_size": 16, "cond_stage_config": UNCONDITIONAL}
    return {"target": "ldm.models.diffusion.ddpm.LatentDiffusion", "params": networks | params}


def first_stage() -> dict[str, Tensor]:
    """The random weights of a first stage, which a diffusion checkpoint must have."""
    config = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=3)
    return {f"first_stage_model.{name}": value.detach() for name, value in Autoencoder(config).named_parameters()}


@pytest.mark.parametrize("name", ["akl_tiny", "akl_attn_tiny"])
@torch.no_grad()
def test_a_converted_first_stage_equals_the_original(tmp_path, name):
    meta, tensors = vectors.case(name)
    config = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": meta["config"]}
    model = convert(tmp_path, config, vectors.weights(meta))
    x, expected = vectors.inputs(tensors, torch.float32)["x"], vectors.outputs(tensors, torch.float32)
    mean, logvar = model.moments(x)
    assert vectors.close(mean, expected["mean"]) and vectors.close(logvar, expected["logvar"])
    assert vectors.close(model.decode(model.encode(x)), expected["rec_mode"])


@pytest.mark.parametrize("has_ema", [False, True])
@pytest.mark.parametrize("name", ["unet_uncond_headch", "unet_xattn_headch"])
@torch.no_grad()
def test_a_converted_unet_equals_the_original(tmp_path, name, has_ema):
    meta, tensors = vectors.case(name)
    src = {f"model.diffusion_model.{key}": value for key, value in vectors.weights(meta).items()}
    state, config = src | first_stage(), latent_diffusion(meta["config"]["unet"])
    if has_ema:  # the raw weights are other random numbers
        state |= {ema_name(key): value for key, value in src.items()}
        state |= {key: torch.randn_like(value) for key, value in src.items()}
    if name == "unet_xattn_headch":
        state["cond_stage_model.embedding.weight"] = torch.zeros(1000, 24)
        stage = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 24}}
        config["params"] |= {"cond_stage_config": stage, "conditioning_key": "crossattn"}
    pipeline = convert(tmp_path, config, state)
    inputs, expected = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)["out"]
    x, t, cond = inputs["x"], inputs["t"], Cond(context=inputs.get("context"))
    assert vectors.close(pipeline.unet(x, t, cond), expected)
    if has_ema:
        main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--weights", "raw",
              "--output", str(tmp_path / "raw")])  # fmt: skip
        assert vectors.error(load_run(tmp_path / "raw").unet(x, t, cond), expected) > 0.1


@torch.no_grad()
def test_a_converted_text_encoder_equals_the_original(tmp_path):
    meta, tensors = vectors.case("bert_tiny")
    unet = {"in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [],
            "channel_mult": [1], "num_heads": 1, "use_spatial_transformer": True, "context_dim": 64}  # fmt: skip
    names = ("n_embed", "n_layer", "vocab_size", "max_seq_len")
    stage = {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {n: meta["config"][n] for n in names}}
    config = latent_diffusion(unet, cond_stage_config=stage, conditioning_key="crossattn", cond_stage_key="caption")
    network = UNet(UNetConfig(32, (1,), 1, (), num_heads=1), 3, 3, 64)
    state = key_map.to_src(network.state_dict(), unet_key_map(network))
    state = {f"model.diffusion_model.{key}": value for key, value in state.items()} | first_stage()
    state |= {f"cond_stage_model.{key}": value for key, value in vectors.weights(meta).items()}
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "star"]) + "\n")
    pipeline = convert(tmp_path, config, state, "--vocab", str(tmp_path / "vocab.txt"))
    inputs, expected = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)
    drop = torch.zeros(2, dtype=torch.bool)
    for field, name in {"tokens": "emb_full", "tokens_short": "emb_short"}.items():
        cond = pipeline.conditioner({"tokens": inputs[field]}, drop)
        assert vectors.close(cond.context, expected[name]) and cond.context_mask is None
