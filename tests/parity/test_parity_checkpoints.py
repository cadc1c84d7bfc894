"""A checkpoint with the original's names, converted by the command, gives the original release's numbers."""

import json
from pathlib import Path

import pytest
import torch
import vectors
from torch import Tensor

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.conditioning.cond import Cond
from latentdiff.convert.__main__ import main
from latentdiff.convert.compvis import key_map
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.load import load_run

TINY = {"double_z": True, "z_channels": 3, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
        "num_res_blocks": 1, "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
FREE = "__is_unconditional__"


def convert(folder: Path, config: dict, state: dict[str, Tensor], *words: str):
    torch.save({"state_dict": state}, folder / "model.ckpt")
    (folder / "config.yaml").write_text(json.dumps({"model": config}))
    paths = ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    main(["compvis", str(folder / "model.ckpt"), *paths, *words])
    return load_run(folder / "run")


def latent_diffusion(unet: dict, **params) -> dict:
    first = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {"embed_dim": 3, "ddconfig": TINY}}
    unet = {"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": unet}
    both = {"first_stage_config": first, "unet_config": unet, "image_size": 16}
    return {
        "target": "ldm.models.diffusion.ddpm.LatentDiffusion",
        "params": both | {"cond_stage_config": FREE} | params,
    }


def first_stage() -> dict[str, Tensor]:
    """A first stage of noise, which every whole model needs."""
    config = AutoencoderConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=3)
    return {f"first_stage_model.{name}": value.detach() for name, value in Autoencoder(config).named_parameters()}


@pytest.mark.parametrize("name", ["akl_tiny", "akl_attn_tiny"])
@torch.no_grad()
def test_a_converted_first_stage_equals_the_original(tmp_path, name):
    meta, tensors = vectors.case(name)
    config = {"target": "ldm.models.autoencoder.AutoencoderKL", "params": meta["config"]}
    model = convert(tmp_path, config, vectors.weights(meta))
    given, want = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)
    mean, logvar = model.moments(given["x"])
    assert vectors.close(mean, want["mean"]) and vectors.close(logvar, want["logvar"])
    assert vectors.close(model.decode(model.encode(given["x"])), want["rec_mode"])


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("name", ["unet_uncond_headch", "unet_xattn_headch"])
@torch.no_grad()
def test_a_converted_unet_equals_the_original(tmp_path, name, averaged):
    meta, tensors = vectors.case(name)
    theirs = {f"model.diffusion_model.{key}": value for key, value in vectors.weights(meta).items()}
    state, config = theirs | first_stage(), latent_diffusion(meta["config"]["unet"])
    if averaged:  # the average counts, and the raw weights are noise
        state |= {"model_ema." + key[6:].replace(".", ""): value for key, value in theirs.items()}
        state |= {key: torch.randn_like(value) for key, value in theirs.items()}
    if name == "unet_xattn_headch":
        state["cond_stage_model.embedding.weight"] = torch.zeros(1000, 24)
        stage = {"target": "ldm.modules.encoders.modules.ClassEmbedder", "params": {"embed_dim": 24}}
        config["params"] |= {"cond_stage_config": stage, "conditioning_key": "crossattn"}
    model = convert(tmp_path, config, state)
    given, want = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)["out"]
    cond = Cond(context=given.get("context"))
    assert vectors.close(model.unet(given["x"], given["t"], cond), want)
    if averaged:
        main(["compvis", str(tmp_path / "model.ckpt"), "--config", str(tmp_path / "config.yaml"), "--weights", "raw",
              "--output", str(tmp_path / "raw")])  # fmt: skip
        assert vectors.error(load_run(tmp_path / "raw").unet(given["x"], given["t"], cond), want) > 0.1


@torch.no_grad()
def test_a_converted_text_encoder_equals_the_original(tmp_path):
    meta, tensors = vectors.case("bert_tiny")
    unet = {"in_channels": 3, "out_channels": 3, "model_channels": 32, "num_res_blocks": 1, "attention_resolutions": [],
            "channel_mult": [1], "num_heads": 1, "use_spatial_transformer": True, "context_dim": 64}  # fmt: skip
    names = ("n_embed", "n_layer", "vocab_size", "max_seq_len")
    stage = {"target": "ldm.modules.encoders.modules.BERTEmbedder", "params": {n: meta["config"][n] for n in names}}
    config = latent_diffusion(unet, cond_stage_config=stage, conditioning_key="crossattn", cond_stage_key="caption")
    network = UNet(UNetConfig(32, (1,), 1, (), num_heads=1), 3, 3, 64)
    state = key_map.unet_to_original(network.state_dict(), network)
    state = {f"model.diffusion_model.{key}": value for key, value in state.items()} | first_stage()
    state |= {f"cond_stage_model.{key}": value for key, value in vectors.weights(meta).items()}
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "star"]) + "\n")
    model = convert(tmp_path, config, state, "--vocab", str(tmp_path / "vocab.txt"))
    given, want = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)
    shown = torch.zeros(2, dtype=torch.bool)
    for field, name in {"tokens": "emb_full", "tokens_short": "emb_short"}.items():
        cond = model.conditioner({"tokens": given[field]}, shown)
        assert vectors.close(cond.context, want[name]) and cond.context_mask is None
