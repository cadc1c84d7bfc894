"""From conditions to latents and images, and the pipeline that load_run returns."""

from dataclasses import replace

import pytest
import torch
from test_model import SHAPE, model

import latentdiff
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.config import UserError
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.sampling.pipeline import Pipeline, SampleNoise, sample_latents
from latentdiff.stage_two.batches import set_latent_stats
from latentdiff.training import checkpoint

# ---- latents


def sampled(network, seeds, labels, negative=None, **settings):
    settings = SamplingConfig(**({"steps": 4} | settings))
    *_, z = sample_latents(network, {"label": torch.tensor(labels)}, seeds, SHAPE, settings, negative=negative)
    return z


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_a_sample_is_the_same_in_any_batch(sampler):
    network = model()
    whole = sampled(network, [3, 4, 5], [0, 1, 2], sampler=sampler)
    assert torch.allclose(whole[1:2], sampled(network, [4], [1], sampler=sampler), atol=1e-4)
    assert not torch.allclose(whole[1:2], sampled(network, [5], [1], sampler=sampler), atol=1e-2)


def test_every_step_yields_a_prediction_of_z0():
    network = model()
    predictions = list(sample_latents(network, {"label": torch.tensor([1])}, [0], SHAPE, SamplingConfig(steps=5)))
    assert len(predictions) == 5 and not torch.equal(predictions[0], predictions[-1])


def test_guidance_moves_from_the_dropped_to_the_full_condition():
    """Scale 0 is the dropped condition, 1 the full one, and one step is linear in the scale."""
    network = model()
    zero, one, three = (sampled(network, [0], [2], guidance_scale=s, steps=1, sampler="ddim") for s in (0.0, 1.0, 3.0))
    assert torch.allclose(three, zero + 3 * (one - zero), atol=1e-4) and not torch.allclose(zero, one, atol=1e-4)
    dropped = network.conditioner({"label": torch.tensor([2])}, torch.tensor([True]))
    assert torch.equal(dropped.context[0, 0], network.conditioner.parts[0].embedding.weight[5])


def test_a_negative_condition_replaces_the_dropped_one():
    network = model()
    same = sampled(network, [0], [2], negative={"label": torch.tensor([2])}, guidance_scale=7.0)
    assert torch.allclose(
        same, sampled(network, [0], [2], guidance_scale=1.0), atol=1e-3
    )  # both are equal: guidance has no effect
    assert not torch.allclose(sampled(network, [0], [2], guidance_scale=7.0), same, atol=1e-2)


def test_every_sample_may_have_a_separate_guidance_scale():
    network = model()
    labels, settings = {"label": torch.tensor([2, 2])}, SamplingConfig(steps=2)
    *_, both = sample_latents(network, labels, [0, 0], SHAPE, settings, scales=[1.0, 5.0])
    for z, scale in zip(both, (1.0, 5.0)):
        assert torch.allclose(z, sampled(network, [0], [2], steps=2, guidance_scale=scale)[0], atol=1e-4)


def test_autoguidance_replaces_the_dropped_condition_by_a_weak_model():
    network, weak = model(dropout=0.0), model(dropout=0.0)
    weak.load_state_dict({name: 0.5 * x for name, x in network.state_dict().items()})
    alone = sampled(network, [0], [2], steps=1, sampler="ddim", guidance_scale=1.0)
    weak_z = sampled(weak, [0], [2], steps=1, sampler="ddim", guidance_scale=1.0)
    network.set_weak_model(weak)
    guided = sampled(network, [0], [2], steps=1, sampler="ddim", guidance_scale=3.0)
    assert torch.allclose(guided, weak_z + 3 * (alone - weak_z), atol=1e-4) and not torch.allclose(
        guided, alone, atol=1e-3
    )
    with pytest.raises(UserError, match="same noise schedule"):
        network.set_weak_model(model("flow"))


@pytest.mark.parametrize("change, message", [
    ({"guidance_interval": (0.8, 0.2)}, "guidance_interval is"),
    ({"sampler": "magic"}, "sampler is 'magic'"), ({"steps": 0}, "steps is 0"), ({"steps": 1001}, "steps is 1001"),
    ({"eta": 2.0, "sampler": "ddim"}, "eta is 2.0"), ({"timestep_spacing": "odd"}, "spacing is 'odd'"),
])  # fmt: skip
def test_settings_that_are_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        sampled(model(), [0], [0], **change)


def test_guidance_without_dropout_in_training_is_refused():
    with pytest.raises(UserError, match="it must be 1"):
        sampled(model(dropout=0.0), [0], [0], guidance_scale=2.0)
    assert torch.isfinite(sampled(model(dropout=0.0), [0], [0], guidance_scale=1.0)).all()


def test_the_noise_of_a_sample_depends_on_its_seed_alone_in_all_steps():
    three, one = SampleNoise([7, 8, 9], SHAPE, torch.device("cpu")), SampleNoise([8], SHAPE, torch.device("cpu"))
    for _ in range(3):
        assert torch.equal(three()[1:2], one())
    assert not torch.equal(SampleNoise([8], SHAPE, "cpu")(), one())


# ---- a loaded run


@pytest.fixture(scope="module")
def loaded(overfit_run):
    return latentdiff.load_run(overfit_run)


def test_cast_weights_sample_the_same_bits_as_autocast():
    """The norms keep their type."""
    network = model().requires_grad_(False)
    weak = model(dropout=0.2).requires_grad_(False)
    network.set_weak_model(weak)

    def in_bf16():
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            batch, settings = {"label": torch.tensor([1, 3])}, SamplingConfig(steps=4, guidance_scale=2.0)
            return list(sample_latents(network, batch, [5, 6], SHAPE, settings))[-1]

    before = in_bf16()
    assert network.cast_weights(torch.float32) is network and torch.equal(in_bf16(), before)
    network.cast_weights(torch.bfloat16)
    assert {p.dtype for p in network.unet.parameters()} == {torch.float32, torch.bfloat16}
    assert weak.unet.conv_out.weight.dtype == torch.bfloat16
    assert torch.equal(in_bf16(), before) and before.dtype == torch.float32


def test_a_run_is_loaded_by_folder_or_by_name(overfit_run, monkeypatch, loaded):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(overfit_run.parent))
    for path in (overfit_run, str(overfit_run), overfit_run.name):
        again = latentdiff.load_run(path)
        assert isinstance(again, Pipeline)
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), loaded.state_dict().values()))
    with pytest.raises(UserError, match="no run at nowhere"):
        latentdiff.load_run("nowhere")


def test_a_stage_one_run_is_an_autoencoder(stage_one_run):
    autoencoder = latentdiff.load_run(stage_one_run)
    assert isinstance(autoencoder, Autoencoder) and not autoencoder.training


def test_a_loaded_run_has_the_ema_weights_and_no_gradients(overfit_run, loaded):
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    ema = checkpoint.read_tensors(overfit_run / "checkpoints" / "step_00000200" / "ema.safetensors")
    assert all(torch.equal(tensor, loaded.model.state_dict()[name]) for name, tensor in ema.items())


def test_an_unfinished_run_loads_its_newest_ema_weights(stage_two_run, copy_run):
    run = copy_run(stage_two_run)
    (run / "model.safetensors").unlink()
    assert isinstance(latentdiff.load_run(run), Pipeline)
    for path in sorted((run / "checkpoints").iterdir()):
        path.rename(run / path.name)
    with pytest.raises(UserError, match="has no weights yet"):
        latentdiff.load_run(run)


def test_samples_are_images_and_settings_replace_those_of_the_run(loaded):
    x = loaded.sample(prompt=["a red star", "a blue ring"], steps=3, guidance_scale=2.0, seed=7)
    assert x.shape == (2, 3, 32, 32) and x.min() >= -1 and x.max() <= 1
    assert torch.allclose(x[1:], loaded.sample("a blue ring", steps=3, guidance_scale=2.0, seed=8), atol=1 / 255)
    assert not torch.allclose(x, loaded.sample(["a red star", "a blue ring"], steps=4, guidance_scale=2.0, seed=7))
    assert loaded.sample("a star", steps=2, height=40, width=56).shape == (1, 3, 40, 56)
    assert not torch.equal(*(loaded.sample("a star", steps=2, negative_prompt=n) for n in (None, "a red ring")))
    with pytest.raises(UserError, match="multiple of 4"):
        loaded.sample("a star", height=30)
    with pytest.raises(UserError, match="at most 30"):
        loaded.sample("star " * 50)


def test_the_autoencoder_of_a_run_offers_the_four_names(loaded):
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    autoencoder = loaded.autoencoder
    z = autoencoder.encode(x)
    assert z.shape == (2, autoencoder.z_channels, 32 // autoencoder.factor, 32 // autoencoder.factor)
    assert autoencoder.decode(z).shape == x.shape
    mean, logvar = autoencoder.moments(x)
    assert torch.equal(z, (mean - autoencoder.latent_shift) * autoencoder.latent_scale) and logvar.shape == z.shape


def test_conditioner_unet_and_schedule_are_open(loaded):
    fields = loaded.prepare({"caption": ["a red star", "a blue ring"]})
    cond = loaded.conditioner(fields, torch.tensor([False, True]))
    empty = loaded.conditioner(loaded.prepare({"caption": ["", ""]}), torch.tensor([False, False]))
    assert torch.allclose(cond.context[1], empty.context[1], atol=1e-6) and cond.context_mask.dtype == torch.bool
    z_t = torch.randn(2, *loaded.latent_shape())
    assert loaded.unet(z_t, torch.tensor([10.0, 500.0]), cond).shape == z_t.shape
    vp = Schedule(ScheduleConfig()).alphas_cumprod
    assert vp.shape == (1000,) and (vp.diff() < 0).all()


def test_latent_statistics_that_do_not_fit_the_data_are_reported(loaded):
    autoencoder, messages = loaded.autoencoder, []
    scale = autoencoder.latent_scale.flatten().double().numpy()
    right = (0 * scale, 1 / scale**2)
    for measured, count in ((right, 0), ((right[0], 1.2 * right[1]), 0), ((right[0], 2 * right[1]), 1)):
        messages.clear()
        set_latent_stats("run", autoencoder, measured, messages.append)
        assert len(messages) == count
    assert "1.41" in messages[0] and "autoencoder.latent_stats=data" in messages[0]


def test_the_default_settings_are_those_of_the_recipe(loaded):
    assert loaded.model.sampling == SamplingConfig(steps=4, guidance_scale=2.0)
    default = loaded.sample("a star", seed=1)
    assert torch.equal(default, loaded.sample("a star", seed=1, **vars(replace(loaded.model.sampling))))
