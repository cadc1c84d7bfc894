"""AutoencoderKL and VQModel of diffusers and our autoencoder compute the same, both ways."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from theirs import TOLERANCE, diffusers, exported, imported, levels, native, off, randomised

import latentdiff
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers.import_ import import_folder
from latentdiff.recipe import AutoencoderRecipe

KLS = {
    "Stable Diffusion": levels(8, 16, 16, 16, layers_per_block=2),
    "SDXL": levels(12, 24, groups=6, scaling_factor=0.13025, latents_mean=[0.1, -0.2, 0.3, 0.4],
                   latents_std=[2, 1, 3, 4]),
    "SD3": levels(4, 8, 8, latent_channels=16, shift_factor=0.0609, scaling_factor=1.5305, use_quant_conv=False,
                  use_post_quant_conv=False),
    "attention on levels, none in the middle": levels(8, 8, attend=(1,), mid_block_add_attention=False, groups=2),
}  # fmt: skip
VQS = {
    "vq-f4": levels(8, 16, 16, num_vq_embeddings=32, scaling_factor=1.0, layers_per_block=2),
    "a narrower codebook": levels(8, 8, attend=(0,), num_vq_embeddings=16, latent_channels=4, vq_embed_dim=2),
}
X = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def normalised(latent, config):
    """As diffusers' pipelines normalise a latent."""
    shift, scale = torch.tensor(config.get("shift_factor") or 0.0), torch.tensor(config["scaling_factor"])
    if config.get("latents_mean"):
        shift, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("latents_mean", "latents_std"))
        scale = scale / std
    return (latent - shift) * scale


@torch.no_grad()
@pytest.mark.parametrize("options", KLS.values(), ids=KLS)
def test_a_kl_autoencoder_is_the_same_here_and_there(options, tmp_path):
    theirs = randomised(diffusers.AutoencoderKL(**options))
    ours, posterior = imported(theirs, tmp_path), theirs.encode(X).latent_dist
    mean, logvar = ours.moments(X)
    assert off(mean, posterior.mean) < TOLERANCE and off(logvar, posterior.logvar) < TOLERANCE
    z = ours.encode(X)
    assert off(z, normalised(posterior.mean, theirs.config)) < TOLERANCE
    assert off(ours.decode(z), theirs.decode(posterior.mean).sample) < TOLERANCE
    again = diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    assert off(normalised(again.encode(X).latent_dist.mean, again.config), z) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("options", VQS.values(), ids=VQS)
def test_a_vq_autoencoder_is_the_same_here_and_there(options, tmp_path):
    theirs = randomised(diffusers.VQModel(**options))
    ours, h = imported(theirs, tmp_path), theirs.encode(X).latents
    assert off(ours.moments(X)[0], h) < TOLERANCE
    assert off(ours.decode(ours.encode(X)), theirs.decode(h).sample) < TOLERANCE
    again = diffusers.VQModel.from_pretrained(exported(tmp_path))
    assert off(again.decode(again.encode(X).latents).sample, theirs.decode(h).sample) < TOLERANCE
    assert again.config.scaling_factor == pytest.approx(theirs.config.scaling_factor)


@torch.no_grad()
def test_one_exchanged_weight_would_be_seen(tmp_path):
    theirs = randomised(diffusers.AutoencoderKL(**KLS["Stable Diffusion"]))
    ours, mean = imported(theirs, tmp_path), theirs.encode(X).latent_dist.mean
    attention = ours.encoder.mid.attn_1
    attention.v.weight.copy_(attention.proj_out.weight)
    assert off(ours.moments(X)[0], mean) > 10 * TOLERANCE


def recipe(**others):
    autoencoder = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, **others)
    return AutoencoderRecipe(name="run", autoencoder=autoencoder)


@pytest.mark.parametrize("bottleneck", [KLConfig(), VQConfig(codebook_size=16)], ids=["KL", "VQ"])
def test_out_and_in_again_is_the_same_bit_for_bit(bottleneck, tmp_path):
    run = native(recipe(bottleneck=bottleneck), tmp_path / "run", scale=0.18215)
    import_folder(str(exported(tmp_path)), output=str(tmp_path / "again"))
    before, after = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert sorted(before) == sorted(after)
    assert all(before[name].dtype == after[name].dtype and torch.equal(before[name], after[name]) for name in before)
    assert latentdiff.load_run(tmp_path / "again").config == recipe(bottleneck=bottleneck).autoencoder


@torch.no_grad()
def test_statistics_per_channel_are_folded_into_the_weights(tmp_path):
    native(recipe(), tmp_path / "run")
    ours = latentdiff.load_run(tmp_path / "run")
    ours.set_latent_stats(torch.tensor([0.3, -1.0, 2.0, 0.1]), torch.tensor([0.2, 1.5, 0.7, 3.0]))
    save_file(ours.state_dict(), tmp_path / "run" / "model.safetensors")
    theirs = diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    assert theirs.config.scaling_factor == 1 and theirs.config.shift_factor is None
    posterior, noise = theirs.encode(X).latent_dist, torch.randn(2, 4, 8, 12)
    z = ours.encode(X, noise)
    assert off(posterior.mean + posterior.std * noise, z) < 1e-6
    assert off(theirs.decode(z).sample, ours.decode(z)) < 1e-6


@torch.no_grad()
def test_an_autoencoder_without_a_posterior_gets_one_that_is_hardly_wide(tmp_path):
    native(recipe(bottleneck=IdentityConfig()), tmp_path / "run")
    ours, theirs = latentdiff.load_run(tmp_path / "run"), diffusers.AutoencoderKL.from_pretrained(exported(tmp_path))
    posterior = theirs.encode(X).latent_dist
    assert off(posterior.mean, ours.encode(X)) < TOLERANCE and posterior.std.max() < 1e-6
    assert off(theirs.decode(posterior.mean).sample, ours.decode(posterior.mean)) < TOLERANCE


def test_a_codebook_cannot_be_normalised_channel_by_channel(tmp_path):
    native(recipe(bottleneck=VQConfig(codebook_size=16)), tmp_path / "run")
    model = latentdiff.load_run(tmp_path / "run")
    model.set_latent_stats(0.0, torch.tensor([1.0, 2.0, 1.0, 1.0]))
    save_file(model.state_dict(), tmp_path / "run" / "model.safetensors")
    with pytest.raises(UserError, match="codebook"):
        exported(tmp_path)
    assert not list(tmp_path.glob("*run-exported*"))


CHANGES = [{"act_fn": "gelu"}, {"in_channels": 1}, {"something_new": 3}, {"block_out_channels": [8, 12]},
           {"up_block_types": ["UpDecoderBlock2D"]}]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_an_option_that_we_cannot_follow_is_refused_by_name(change, tmp_path):
    randomised(diffusers.AutoencoderKL(**levels(8, 16))).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=next(iter(change))):
        import_folder(str(tmp_path / "theirs"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
