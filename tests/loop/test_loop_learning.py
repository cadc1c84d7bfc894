"""The loops really train, and everything that a recipe asks for reaches a weight."""

from statistics import mean

import pytest
import torch
from conftest import STAGE_ONE, STAGE_TWO, assert_same_tensors, call, column, rows, tensors_of

import latentdiff
from latentdiff import build, recipe
from latentdiff.config import read_recipe
from latentdiff.data import loader
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import optim

SMALL = ("data.count=16", "data.val_count=4", "train.precision=fp32")


def last(run):
    """The tensors of the newest checkpoint."""
    return tensors_of(sorted((run / "checkpoints").iterdir())[-1])


def furthest(a, b, file="model."):
    """The largest difference of any value in one file."""
    return max((a[name] - b[name]).abs().max().item() for name in a if name.startswith(file))


# ---- stage one


def test_stage_one_learns_to_reconstruct(runs):
    call(*STAGE_ONE, "name=run", "train.val_every=20")
    loss, psnr = column(runs / "run", "nll"), column(runs / "run", "psnr")
    assert mean(loss[-10:]) < 0.8 * mean(loss[:10])
    assert psnr[-1] > psnr[0]
    assert (runs / "run" / "curve.png").exists() and (runs / "run" / "samples" / "00000060.png").exists()


def test_overfitting_stage_one_reconstructs_its_pictures(runs):
    call(*STAGE_ONE, "--overfit", "2", "discriminator=none", "name=run", "train.steps=100")
    assert column(runs / "run-overfit2", "psnr")[-1] > 17


def test_finished_latents_have_variance_one(unbroken_one):
    r = read_recipe("recipes/autoencoder/tiny.py", AutoencoderRecipe)
    model, data = latentdiff.load_run(unbroken_one), recipe.open_data(r, "train")
    x = loader.images(next(loader.sequential_batches(data, range(len(data)), len(data))))
    with torch.no_grad():
        noise = torch.randn(4, *model.encode(x).shape, generator=torch.Generator().manual_seed(0))
        z = torch.cat([model.encode(x, n) for n in noise])
    assert z.var(dim=(0, 2, 3)).mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(model.latent_scale, torch.ones_like(model.latent_scale))


def test_statistics_per_channel_normalise_each_channel(runs):
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
def test_every_term_of_stage_one_moves_the_weights_by_itself(term, runs):
    call(*STAGE_ONE, *SMALL, *TERMS[term], "discriminator=none", "train.steps=3", "name=run")
    start = build.build_autoencoder(read_recipe("recipes/autoencoder/tiny.py")).state_dict()
    end = last(runs / "run")
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, end[f"model.{name}"])}
    parts = {"nothing": set(), "kl": {"encoder"}}.get(term, {"encoder", "decoder"})
    assert {name.split(".")[0] for name in moved} - {"quant_conv", "post_quant_conv"} == parts


def test_the_discriminator_learns_before_it_weighs(runs):
    def run(name, *words):
        call(*STAGE_ONE, *SMALL, "train.steps=6", "train.checkpoint_every=3", *words, f"name={name}")
        return [tensors_of(runs / name / "checkpoints" / f"step_0000000{step}") for step in (3, 6)]

    with_it = run("with", "discriminator.train_from=0", "discriminator.start=4", "discriminator.ramp=1")
    without = run("without", "discriminator=none")
    assert furthest(without[0], with_it[0]) == 0  # it learned, but was not felt
    assert furthest(without[1], with_it[1]) > 1e-4
    learned = furthest(with_it[0], with_it[1], "discriminator.")
    assert learned > 1e-4
    assert [row.get("disc_weight") for row in rows(runs / "with") if "lr" in row] == [0, 0, 0, 0, 0.5, 0.5]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_a_bad_gradient_reaches_no_weight_and_is_counted(stage, runs, monkeypatch):
    step, calls = optim.step, []

    def poisoned(optimizer, *rest):
        calls.append(optimizer)
        if calls.count(calls[0]) == 3 and optimizer is calls[0]:  # the third step of the first optimiser
            gradient = optimizer.param_groups[0]["params"][0].grad
            gradient[(0,) * gradient.ndim] = float("nan")
        return step(optimizer, *rest)

    monkeypatch.setattr(optim, "step", poisoned)
    words = (
        "train.steps=4",
        "train.checkpoint_every=1",
        "train.keep_checkpoints=9",
        "train.val_every=9",
        "train.ema_decay=0.5",
    )
    call(*stage, *SMALL, *words, "name=run")
    points = [tensors_of(path) for path in sorted((runs / "run" / "checkpoints").iterdir())]
    for file in ("model.", "ema.", "optimizer."):
        before, after = ({n: t for n, t in point.items() if n.startswith(file)} for point in points[1:3])
        assert_same_tensors(before, after)
        assert furthest(points[0], points[1], file) > 0 and furthest(points[2], points[3], file) > 0
    assert column(runs / "run", "skipped_steps") == [0, 0, 1, 0]
    assert [name for row in rows(runs / "run") for name, value in row.items() if value is None] == ["grad_norm"]


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_fp16_trains_once_its_scale_is_found(stage, runs):
    call(*stage, *SMALL, "train.precision=fp16", "train.steps=24", "name=run")
    loss = column(runs / "run", "nll" if stage is STAGE_ONE else "loss")
    assert column(runs / "run", "skipped_steps")[-4:] == [0] * 4
    assert mean(loss[-3:]) < mean(loss[:3])


# ---- stage two


def test_stage_two_learns_to_denoise(unbroken_two):
    loss = column(unbroken_two, "loss")
    assert mean(loss[-5:]) < 0.95 * mean(loss[:5])
    assert column(unbroken_two, "val_loss")[-1] < column(unbroken_two, "val_loss")[0]


@pytest.mark.slow
def test_text_is_used(reader):
    """The loss with the captions of others is larger, and each caption draws its own picture."""
    assert column(reader, "text_gap")[-1] > 0.5
    model = latentdiff.load_run(reader)
    r = read_recipe("recipes/diffusion/tiny.py", DiffusionRecipe)
    batch = next(loader.sequential_batches(recipe.open_data(r, "train"), range(4), 4))
    drawn = model.sample(batch["caption"], steps=10, guidance_scale=1.5, seed=5)
    with torch.no_grad():
        wanted = model.autoencoder.decode(model.autoencoder.encode(loader.images(batch)))
    distances = torch.cdist(drawn.flatten(1), wanted.flatten(1))  # [drawn, wanted]
    assert distances.argmin(dim=1).tolist() == [0, 1, 2, 3]


def test_every_part_of_stage_two_moves(unbroken_two):
    first, end = (tensors_of(unbroken_two / "checkpoints" / f"step_000000{n}") for n in (10, 20))
    trained = [name for name in first if name.startswith("model.") and first[name].is_floating_point()]
    assert not [name for name in trained if torch.equal(first[name], end[name])]


def test_the_average_trails_the_weights(unbroken_two):
    end = last(unbroken_two)
    assert 1e-6 < furthest({n.replace("ema.", "model."): t for n, t in end.items() if n.startswith("ema.")}, end) < 0.1


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
def test_two_pieces_of_a_batch_equal_one(stage, runs):
    words = ("train.steps=4", "train.precision=fp32", "train.lr=1e-4", "train.val_every=4")
    for pieces in (1, 2):
        call(*stage, *words, f"train.grad_accum_steps={pieces}", f"name=run{pieces}")
    a, b = (column(runs / f"run{pieces}", "loss" if stage is STAGE_TWO else "nll") for pieces in (1, 2))
    assert a == pytest.approx(b, rel=1e-4)
    assert furthest(last(runs / "run1"), last(runs / "run2")) < 2e-5


def test_another_seed_is_another_run(unbroken_two, runs):
    call(*STAGE_TWO, "train.seed=1", "train.steps=1", "name=run")
    with pytest.raises(AssertionError):
        assert_same_tensors(last(runs / "run"), last(unbroken_two))
    assert column(runs / "run", "loss")[0] != column(unbroken_two, "loss")[0]


def test_other_seeds_share_the_cache(runs, capsys):
    for seed in (0, 1):
        call(*STAGE_TWO, *SMALL, f"train.seed={seed}", "train.steps=1", f"name=run{seed}")
    assert capsys.readouterr().out.count("encoding") == 1


def test_the_cache_changes_no_draw(runs):
    """With and without a cache the same latents are seen, but for the order of summation while encoding."""
    for on in ("true", "false"):
        call(*STAGE_TWO, *SMALL, "train.steps=3", f"cache.enabled={on}", f"name={on}")
    assert column(runs / "true", "loss") == pytest.approx(column(runs / "false", "loss"), rel=1e-4)


def test_the_run_keeps_all_that_sampling_needs(unbroken_two):
    for name in ("recipe.json", "metrics.jsonl", "model.safetensors", "tokenizer.json", "autoencoder/recipe.json",
                 "autoencoder/model.safetensors", "samples/00000020.png", "curve.png"):  # fmt: skip
        assert (unbroken_two / name).is_file()
    assert not (unbroken_two / "bad_images.jsonl").exists()


def test_statistics_may_be_those_of_the_data(unbroken_one, runs):
    words = (*SMALL, "train.steps=1", f"autoencoder={unbroken_one}")
    for kind in ("run", "data", "identity"):
        call(*STAGE_TWO, *words, f"autoencoder.latent_stats={kind}", f"name={kind}")
    own = latentdiff.load_run(unbroken_one).latent_scale
    scales = {kind: latentdiff.load_run(runs / kind).autoencoder.latent_scale for kind in ("run", "data", "identity")}
    assert torch.equal(scales["run"], own)
    assert torch.equal(scales["identity"], torch.ones_like(own))
    assert not torch.allclose(scales["data"], own) and len(scales["data"].unique()) == 4


def test_a_run_without_text_trains_and_draws(runs):
    call(*STAGE_TWO, *SMALL, "conditions=", "sampling.guidance_scale=1", "train.steps=2", "name=run")
    assert latentdiff.load_run(runs / "run").sample(["", ""], steps=2).shape == (2, 3, 32, 32)
    assert "text_gap" not in rows(runs / "run")[-1]


def test_a_run_with_labels_trains(runs):
    label = ("conditions=Label", "conditions.0.classes=6", "conditions.0.dim=32")
    call(*STAGE_TWO, *SMALL, *label, "train.steps=2", "name=run")
    assert (runs / "run" / "samples" / "00000002.png").exists()
