"""The loops train, and every setting of a recipe has an effect on the weights."""

from statistics import mean

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, assert_same_tensors, call, column, metrics_of, tensors_of

import latentdiff
from latentdiff import build, recipe
from latentdiff.config import read_recipe
from latentdiff.data import loader
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import optim

SMALL = ("data.count=16", "data.val_count=4", "train.precision=fp32")


def last_checkpoint(run):
    """The tensors of the newest checkpoint."""
    return tensors_of(sorted((run / "checkpoints").iterdir())[-1])


def max_difference(a, b, file="model."):
    """The largest absolute difference of the tensors of one file."""
    return max((a[name] - b[name]).abs().max().item() for name in a if name.startswith(file))


# ---- stage one


def test_stage_one_learns_to_reconstruct(runs):
    call(*STAGE_ONE, "name=run", "train.val_every=20")
    loss, psnr = column(runs / "run", "nll"), column(runs / "run", "psnr")
    assert mean(loss[-10:]) < 0.8 * mean(loss[:10])
    assert psnr[-1] > psnr[0]
    assert (runs / "run" / "curve.png").exists() and (runs / "run" / "samples" / "00000060.png").exists()


def test_overfit_stage_one_reconstructs_its_images(runs):
    call(*STAGE_ONE, "--overfit", "2", "discriminator=none", "name=run", "train.steps=100")
    assert column(runs / "run-overfit2", "psnr")[-1] > 17


def test_finished_latents_have_variance_one(stage_one_run):
    r = read_recipe("recipes/autoencoder/tiny.py", AutoencoderRecipe)
    model, data = latentdiff.load_run(stage_one_run), recipe.open_data(r, "train")
    x = loader.images(next(loader.sequential_batches(data, range(len(data)), len(data))))
    with torch.no_grad():
        noise = torch.randn(4, *model.encode(x).shape, generator=torch.Generator().manual_seed(0))
        z = torch.cat([model.encode(x, n) for n in noise])
    assert z.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(model.latent_scale, torch.ones_like(model.latent_scale))


def test_channel_statistics_normalize_each_channel(runs):
    call(*STAGE_ONE, *SMALL, "latent_norm=channel", "train.steps=3", "name=run")
    model = latentdiff.load_run(runs / "run")
    data = recipe.open_data(read_recipe("recipes/autoencoder/tiny.py"), "train")
    x = loader.images(next(loader.sequential_batches(data, range(16), 16)))
    mean_of, logvar = model.moments(x)
    z = model.normalize(mean_of)
    assert torch.allclose(z.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3)
    variance = z.var(dim=(0, 2, 3), correction=0) + (logvar.exp() * model.latent_scale**2).mean(dim=(0, 2, 3))
    assert torch.allclose(variance, torch.ones(4), atol=1e-3)


TERMS = {
    "l1": ("loss.l2=0", "loss.perceptual=none", "autoencoder.bottleneck.weight=0"),
    "l2": ("loss.l1=0", "loss.l2=1", "loss.perceptual=none", "autoencoder.bottleneck.weight=0"),
    "perceptual": ("loss.l1=0", "autoencoder.bottleneck.weight=0"),
    "kl": ("loss.l1=0", "loss.perceptual=none", "autoencoder.bottleneck.weight=1"),
    "nothing": ("loss.l1=0", "loss.perceptual=none", "autoencoder.bottleneck.weight=0"),
}


@pytest.mark.parametrize("term", TERMS)
def test_every_loss_term_of_stage_one_changes_the_weights_by_itself(term, runs):
    call(*STAGE_ONE, *SMALL, *TERMS[term], "discriminator=none", "train.steps=3", "name=run")
    start = build.build_autoencoder(read_recipe("recipes/autoencoder/tiny.py")).state_dict()
    end = last_checkpoint(runs / "run")
    changed = {name for name, tensor in start.items() if not torch.equal(tensor, end[f"model.{name}"])}
    expected = {"nothing": set(), "kl": {"encoder"}}.get(term, {"encoder", "decoder"})
    assert {name.split(".")[0] for name in changed} - {"quant_conv", "post_quant_conv"} == expected


def test_the_discriminator_trains_before_the_adversarial_loss_starts(runs):
    def run(name, *argv):
        call(*STAGE_ONE, *SMALL, "train.steps=6", "train.checkpoint_every=3", *argv, f"name={name}")
        return [tensors_of(runs / name / "checkpoints" / f"step_0000000{step}") for step in (3, 6)]

    adversarial = run("with", "discriminator.train_from=0", "discriminator.start=4", "discriminator.ramp=1")
    plain = run("without", "discriminator=none")
    assert max_difference(plain[0], adversarial[0]) == 0  # it was trained, but had no effect yet
    assert max_difference(plain[1], adversarial[1]) > 1e-4
    assert max_difference(adversarial[0], adversarial[1], "discriminator.") > 1e-4
    assert [row.get("disc_weight") for row in metrics_of(runs / "with") if "lr" in row] == [0, 0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_non_finite_gradient_changes_no_weight_and_is_counted(stage, runs, monkeypatch):
    clip, calls = optim.clip_grad_norm_, []

    def corrupted(optimizer, *rest):
        calls.append(optimizer)
        if calls.count(calls[0]) == 3 and optimizer is calls[0]:  # the third step of the first optimiser
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = float("nan")
        return clip(optimizer, *rest)

    monkeypatch.setattr(optim, "clip_grad_norm_", corrupted)
    argv = (
        "train.steps=4",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
        "train.val_every=9",
        "train.ema_decay=0.5",
    )
    call(*stage, *SMALL, *argv, "name=run")
    saved = [tensors_of(path) for path in sorted((runs / "run" / "checkpoints").iterdir())]
    for file in ("model.", "ema.", "optimizer."):
        before, after = ({n: t for n, t in tensors.items() if n.startswith(file)} for tensors in saved[1:3])
        assert_same_tensors(before, after)
        assert max_difference(saved[0], saved[1], file) > 0 and max_difference(saved[2], saved[3], file) > 0
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0]
    assert [name for row in metrics_of(runs / "run") for name, value in row.items() if value is None] == ["grad_norm"]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_fp16_trains_once_the_loss_scale_has_adapted(stage, runs):
    call(*stage, *SMALL, "train.precision=fp16", "train.steps=24", "name=run")
    loss = column(runs / "run", "nll" if stage is STAGE_ONE else "loss")
    assert column(runs / "run", "skipped_steps")[-4:] == [0] * 4
    assert mean(loss[-3:]) < mean(loss[:3])


# ---- stage two


def test_stage_two_learns_to_denoise(stage_two_run):
    loss = column(stage_two_run, "loss")
    assert mean(loss[-5:]) < 0.95 * mean(loss[:5])
    assert column(stage_two_run, "val_loss")[-1] < column(stage_two_run, "val_loss")[0]


@pytest.mark.slow
def test_text_is_used(overfit_run):
    """The loss with shuffled captions is larger, and each caption generates its own image."""
    assert column(overfit_run, "text_gap")[-1] > 0.5
    model = latentdiff.load_run(overfit_run)
    r = read_recipe("recipes/diffusion/tiny.py", DiffusionRecipe)
    batch = next(loader.sequential_batches(recipe.open_data(r, "train"), range(4), 4))
    samples = model.sample(batch["caption"], steps=10, guidance_scale=1.5, seed=5)
    with torch.no_grad():
        targets = model.autoencoder.decode(model.autoencoder.encode(loader.images(batch)))
    distances = torch.cdist(samples.flatten(1), targets.flatten(1))  # [samples, targets]
    assert distances.argmin(dim=1).tolist() == [0, 1, 2, 3]


def test_every_weight_of_stage_two_is_trained(stage_two_run):
    first, end = (tensors_of(stage_two_run / "checkpoints" / f"step_000000{n}") for n in (10, 20))
    trained = [name for name in first if name.startswith("model.") and first[name].is_floating_point()]
    assert not [name for name in trained if torch.equal(first[name], end[name])]


def test_the_ema_follows_the_weights(stage_two_run):
    end = last_checkpoint(stage_two_run)
    assert (
        1e-6
        < max_difference({n.replace("ema.", "model."): t for n, t in end.items() if n.startswith("ema.")}, end)
        < 0.1
    )


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_two_micro_batches_equal_one_batch(stage, runs):
    argv = ("train.steps=4", "train.precision=fp32", "train.lr=1e-4", "train.val_every=4")
    for count in (1, 2):
        call(*stage, *argv, f"train.grad_accum_steps={count}", f"name=run{count}")
    a, b = (column(runs / f"run{count}", "loss" if stage is STAGE_TWO else "nll") for count in (1, 2))
    assert a == pytest.approx(b, rel=1e-4)
    assert max_difference(last_checkpoint(runs / "run1"), last_checkpoint(runs / "run2")) < 2e-5


def test_another_seed_is_another_run(stage_two_run, runs):
    call(*STAGE_TWO, "train.seed=1", "train.steps=1", "name=run")
    with pytest.raises(AssertionError):
        assert_same_tensors(last_checkpoint(runs / "run"), last_checkpoint(stage_two_run))
    assert column(runs / "run", "loss")[0] != column(stage_two_run, "loss")[0]


def test_other_seeds_share_the_cache(runs, capsys):
    for seed in (0, 1):
        call(*STAGE_TWO, *SMALL, f"train.seed={seed}", "train.steps=1", f"name=run{seed}")
    assert capsys.readouterr().out.count("encoding") == 1


def test_the_cache_changes_no_random_number(runs):
    """With and without a cache the latents are equal, apart from the order of summation while encoding."""
    for on in ("true", "false"):
        call(*STAGE_TWO, *SMALL, "train.steps=3", f"cache.enabled={on}", f"name={on}")
    assert column(runs / "true", "loss") == pytest.approx(column(runs / "false", "loss"), rel=1e-4)


def test_a_run_contains_everything_that_sampling_needs(stage_two_run):
    for name in ("recipe.json", "metrics.jsonl", "model.safetensors", "tokenizer.json", "autoencoder/recipe.json",
                 "autoencoder/model.safetensors", "samples/00000020.png", "curve.png"):  # fmt: skip
        assert (stage_two_run / name).is_file()
    assert not (stage_two_run / "bad_images.jsonl").exists()


def test_latent_statistics_can_be_those_of_the_data(stage_one_run, runs):
    argv = (*SMALL, "train.steps=1", f"autoencoder={stage_one_run}")
    for kind in ("run", "data", "identity"):
        call(*STAGE_TWO, *argv, f"autoencoder.latent_stats={kind}", f"name={kind}")
    own = latentdiff.load_run(stage_one_run).latent_scale
    scales = {kind: latentdiff.load_run(runs / kind).autoencoder.latent_scale for kind in ("run", "data", "identity")}
    assert torch.equal(scales["run"], own)
    assert torch.equal(scales["identity"], torch.ones_like(own))
    assert not torch.allclose(scales["data"], own) and len(scales["data"].unique()) == 4


def test_a_run_without_text_trains_and_samples(runs):
    call(*STAGE_TWO, *SMALL, "conditions=", "sampling.guidance_scale=1", "train.steps=2", "name=run")
    assert latentdiff.load_run(runs / "run").sample(["", ""], steps=2).shape == (2, 3, 32, 32)
    assert "text_gap" not in metrics_of(runs / "run")[-1]


def test_a_run_with_labels_trains(runs):
    label = ("conditions=Label", "conditions.0.classes=6", "conditions.0.dim=32")
    call(*STAGE_TWO, *SMALL, *label, "train.steps=2", "name=run")
    assert (runs / "run" / "samples" / "00000002.png").exists()
