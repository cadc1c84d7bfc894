"""AutoencoderKL and VQModel of diffusers compute the same after import and after export."""

import json

import pytest
import torch
from diffusers_models import (
    TOLERANCE,
    diffusers,
    exported,
    imported,
    random_run,
    randomised,
    relative_error,
    vae_options,
)
from safetensors.torch import load_file, save_file

import latentdiff
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers.import_folder import import_folder
from latentdiff.recipe import AutoencoderRecipe

KLS = {
    "Stable Diffusion": vae_options(8, 16, 16, 16, layers_per_block=2),
    "SDXL": vae_options(
        12, 24, groups=6, scaling_factor=0.13025, latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[2, 1, 3, 4]
    ),
    "SD3": vae_options(
        4,
        8,
        8,
        latent_channels=16,
        shift_factor=0.0609,
        scaling_factor=1.5305,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ),
    "attention on levels, none in the middle": vae_options(
        8, 8, attention=(1,), mid_block_add_attention=False, groups=2
    ),
}
VQS = {
    "vq-f4": vae_options(8, 16, 16, num_vq_embeddings=32, scaling_factor=1.0, layers_per_block=2),
    "a narrower codebook": vae_options(8, 8, attention=(0,), num_vq_embeddings=16, latent_channels=4, vq_embed_dim=2),
}
X = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalized(latent, config):
    """As diffusers' pipelines normalize a latent."""
    shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(config["scaling_factor"])
    if config.get("latents_mean"):
        shift, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        scale = scale / std
    return (latent - shift) * scale


@torch.no_grad()
@pytest.mark.parametrize("options", KLS.values(), ids=KLS)
def test_a_kl_autoencoder_computes_the_same(options, tmp_path):
    model = randomised(diffusers.AutoencoderKL(**options))
    run, posterior = imported(model, tmp_path), model.encode(X).latent_dist
    mean, logvar = run.moments(X)
    assert relative_error(mean, posterior.mean) < TOLERANCE and relative_error(logvar, posterior.logvar) < TOLERANCE
    z = run.encode(X)
    assert relative_error(z, normalized(posterior.mean, model.config)) < TOLERANCE
    assert relative_error(run.decode(z), model.decode(posterior.mean).sample) < TOLERANCE
    again = diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    assert relative_error(normalized(again.encode(X).latent_dist.mean, again.config), z) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("options", VQS.values(), ids=VQS)
def test_a_vq_autoencoder_computes_the_same(options, tmp_path):
    model = randomised(diffusers.VQModel(**options))
    run, h = imported(model, tmp_path), model.encode(X).latents
    assert relative_error(run.moments(X)[0], h) < TOLERANCE
    assert relative_error(run.decode(run.encode(X)), model.decode(h).sample) < TOLERANCE
    again = diffusers.VQModel.from_pretrained(exported(tmp_path))
    assert relative_error(again.decode(again.encode(X).latents).sample, model.decode(h).sample) < TOLERANCE
    assert again.config.scaling_factor == pytest.approx(model.config.scaling_factor)


@torch.no_grad()
def test_one_swapped_weight_changes_the_output(tmp_path):
    model = randomised(diffusers.AutoencoderKL(**KLS["Stable Diffusion"]))
    run, mean = imported(model, tmp_path), model.encode(X).latent_dist.mean
    attention = run.encoder.mid.attn_1
    attention.v.weight.copy_(attention.proj_out.weight)
    assert relative_error(run.moments(X)[0], mean) > 10 * TOLERANCE


def recipe(**others):
    autoencoder = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, **others)
    return AutoencoderRecipe(name="run", autoencoder=autoencoder)


@pytest.mark.parametrize("bottleneck", [KLConfig(), VQConfig(codebook_size=16)], ids=["KL", "VQ"])
def test_export_and_import_give_the_same_weights_bit_for_bit(bottleneck, tmp_path):
    run = random_run(recipe(bottleneck=bottleneck), tmp_path / "run", scale=0.18215)
    import_folder(str(exported(tmp_path)), output=str(tmp_path / "again"))
    before, after = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert sorted(before) == sorted(after)
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert latentdiff.load_run(tmp_path / "again").config == recipe(bottleneck=bottleneck).autoencoder


@torch.no_grad()
def test_latent_statistics_per_channel_are_folded_into_the_weights(tmp_path):
    random_run(recipe(), tmp_path / "run")
    run = latentdiff.load_run(tmp_path / "run")
    run.set_latent_stats(torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.tensor([0.2, 1.5, 0.7, 3.0]))
    save_file(run.state_dict(), tmp_path / "run" / "model.safetensors")
    model = diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    assert model.config.scaling_factor == 1 and model.config.shift_factor is None
    posterior, noise = model.encode(X).latent_dist, torch.randn(2, 4, 8, 12)
    z = run.encode(X, noise)
    assert relative_error(posterior.mean + posterior.std * noise, z) < 1e-6
    assert relative_error(model.decode(z).sample, run.decode(z)) < 1e-6


@torch.no_grad()
def test_an_autoencoder_without_a_posterior_is_exported_with_a_very_narrow_one(tmp_path):
    random_run(recipe(bottleneck=IdentityConfig()), tmp_path / "run")
    run, model = latentdiff.load_run(tmp_path / "run"), diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    posterior = model.encode(X).latent_dist
    assert relative_error(posterior.mean, run.encode(X)) < TOLERANCE and posterior.std.max() < 1e-6
    assert relative_error(model.decode(posterior.mean).sample, run.decode(posterior.mean)) < TOLERANCE


def test_latent_statistics_per_channel_are_refused_with_a_codebook(tmp_path):
    random_run(recipe(bottleneck=VQConfig(codebook_size=16)), tmp_path / "run")
    model = latentdiff.load_run(tmp_path / "run")
    model.set_latent_stats(0.0, torch.tensor([1.0, 2.0, 1.0, 1.0]))
    save_file(model.state_dict(), tmp_path / "run" / "model.safetensors")
    with pytest.raises(UserError, match="codebook"):
        exported(tmp_path)
    assert not list(tmp_path.glob("*run-exported*"))


CHANGES = [{"act_fn": "gelu"}, {"in_channels": 1}, {"something_new": 3}, {"block_out_channels": [8, 12]},
           {"up_block_types": ["UpDecoderBlock2D"]}]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_option_that_cannot_be_converted_is_refused_by_name(change, tmp_path):
    randomised(diffusers.AutoencoderKL(**vae_options(8, 16))).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=next(iter(change))):
        import_folder(str(tmp_path / "model"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
