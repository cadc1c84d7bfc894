"""The model as a whole: its loss, its draws, and what a loaded run offers (DESIGN's public face)."""

from dataclasses import replace

import pytest
import torch

import latentdiff
from latentdiff import build, recipe, rng
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.config import UserError
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.model import LatentDiffusion, Noise, ObjectiveConfig, SamplingConfig
from latentdiff.training import checkpoint

TINY = UNetConfig(channels=8, channel_mult=(1,), num_res_blocks=1, attention_levels=(0,), num_heads=2, norm_groups=4)
KINDS = {"eps": "scaled_linear", "x0": "scaled_linear", "v": "scaled_linear", "flow": "flow"}
SHAPE = (2, 4, 4)


def model(prediction="eps", dropout=0.1, **objective):
    """Latents [2, 4, 4], a label of five classes."""
    torch.manual_seed(0)
    conditioner = Conditioner([LabelCondition(LabelConfig(classes=5, dim=8, dropout=dropout))])
    kind = KINDS[prediction]
    schedule = Schedule(ScheduleConfig(kind=kind) if kind == "flow" else ScheduleConfig())
    made = LatentDiffusion(
        conditioner, UNet(TINY, 2, 2, 8), schedule, ObjectiveConfig(prediction=prediction, **objective)
    )
    for p in made.parameters():  # so that zero-initialised layers pass something on
        torch.nn.init.normal_(p, std=0.1)
    return made.eval()


def batch(n):
    keys = torch.arange(n)
    return {"z": rng.normal(keys, SHAPE), "fields": {"label": keys % 5}, "t": rng.uniform(keys).mul(999).floor(),
            "eps": rng.normal(keys + 99, SHAPE), "drops": [torch.zeros(n, dtype=torch.bool)]}  # fmt: skip


def loss(made, b):
    return made(b["z"], b["fields"], b["t"], b["eps"], b["drops"])


# ---- loss


@pytest.mark.parametrize("prediction", KINDS)
@pytest.mark.parametrize("kind", ["l2", "l1"])
def test_the_loss_is_the_error_of_the_prediction(prediction, kind):
    made, b = model(prediction, loss=kind), batch(3)
    alpha, sigma = (f(b["t"]).float().view(-1, 1, 1, 1) for f in (made.schedule.alpha, made.schedule.sigma))
    z_t = alpha * b["z"] + sigma * b["eps"]
    output = made.unet(z_t, b["t"], made.conditioner(b["fields"], b["drops"]))
    target = {"eps": b["eps"], "x0": b["z"], "v": alpha * b["eps"] - sigma * b["z"], "flow": b["eps"] - b["z"]}
    error = output - target[prediction]
    expected = (error**2 if kind == "l2" else error.abs()).mean((1, 2, 3))
    assert loss(made, b).shape == (3,) and torch.allclose(loss(made, b), expected, atol=1e-5)


def test_the_loss_of_a_sample_depends_on_it_alone():
    made, b = model(), batch(4)
    tail = {name: x[2:] for name, x in b.items() if isinstance(x, torch.Tensor)}
    alone = loss(made, b | tail | {"fields": {"label": b["fields"]["label"][2:]}, "drops": [b["drops"][0][2:]]})
    assert torch.allclose(loss(made, b)[2:], alone, atol=1e-5)


def test_a_hidden_condition_changes_the_loss_of_its_sample_only():
    made, b = model(), batch(4)
    hidden = loss(made, b | {"drops": [torch.tensor([False, True, False, False])]})
    assert (hidden != loss(made, b)).tolist() == [False, True, False, False]


def test_learned_weights_know_nothing_of_how_often_t_is_drawn(monkeypatch):
    """At u = log L nothing is left to learn, also where importance draws some t more often and weighs them less."""
    plain, b = model(), batch(4)
    made = model(weighting="uncertainty", timesteps="importance")
    made.load_state_dict(plain.state_dict(), strict=False)
    made.importance.counts.fill_(made.importance.LAST)
    made.importance.losses.copy_(torch.linspace(1, 9, 1000)[:, None].expand_as(made.importance.losses))
    rare, u = made.importance.weight(b["t"]), loss(plain, b).detach().log().requires_grad_()
    monkeypatch.setattr(made.uncertainty, "u", lambda t: u if len(t) == 4 else torch.zeros(len(t)))
    found = loss(made, b)
    assert torch.allclose(found, loss(plain, b) * rare.float()) and rare.std() > 0.1
    (gradient,) = torch.autograd.grad(found.sum(), u)
    assert gradient.abs().max() < 1e-6


def test_timesteps_are_drawn_over_the_whole_schedule():
    u = rng.uniform(torch.arange(4000))
    t = model().draw_timesteps(u)
    assert t.shape == (4000,) and torch.equal(t, t.floor()) and t.min() == 0 and 990 < t.max() <= 999
    assert t.mean().item() == pytest.approx(499.5, abs=20)
    middle = model("flow", timesteps="logit_normal").draw_timesteps(u)
    assert middle.min() >= 0 and middle.max() <= 999
    assert ((middle > 250) & (middle < 750)).double().mean() > 0.65  # 0.73: denser in the middle


def test_drops_follow_each_parts_dropout():
    (drop,) = model(dropout=0.3).draw_drops(torch.arange(4000))
    assert drop.dtype == torch.bool and drop.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert not model(dropout=0.0).draw_drops(torch.arange(100))[0].any()


def test_unknown_objectives_are_refused():
    for change in ({"loss": "l3"}, {"timesteps": "late"}):
        with pytest.raises(UserError, match="objective"):
            ObjectiveConfig(**change)
    with pytest.raises(UserError, match="eps, x0, v, flow"):
        LatentDiffusion(Conditioner([]), None, Schedule(ScheduleConfig()), ObjectiveConfig(prediction="wild"))


# ---- drawing


def drawn(made, seeds, labels, negative=None, **settings):
    *_, z = made.draw(
        {"label": torch.tensor(labels)}, seeds, SHAPE, SamplingConfig(**({"steps": 4} | settings)), negative
    )
    return z


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_a_picture_is_the_same_in_any_batch(sampler):
    made = model()
    whole = drawn(made, [3, 4, 5], [0, 1, 2], sampler=sampler)
    assert torch.allclose(whole[1:2], drawn(made, [4], [1], sampler=sampler), atol=1e-4)
    assert not torch.allclose(whole[1:2], drawn(made, [5], [1], sampler=sampler), atol=1e-2)


def test_every_step_yields_a_guess():
    made = model()
    guesses = list(made.draw({"label": torch.tensor([1])}, [0], SHAPE, SamplingConfig(steps=5)))
    assert len(guesses) == 5 and not torch.equal(guesses[0], guesses[-1])


def test_guidance_moves_from_hidden_to_shown():
    """Scale 0 is the hidden condition, 1 the shown one, and in one step what lies beyond is linear."""
    made = model()
    zero, one, three = (drawn(made, [0], [2], guidance_scale=s, steps=1, sampler="ddim") for s in (0.0, 1.0, 3.0))
    assert torch.allclose(three, zero + 3 * (one - zero), atol=1e-4) and not torch.allclose(zero, one, atol=1e-4)
    hidden = made.conditioner({"label": torch.tensor([2])}, torch.tensor([True]))
    assert torch.equal(hidden.context[0, 0], made.conditioner.parts[0].embedding.weight[5])


def test_a_negative_condition_replaces_the_hidden_one():
    made = model()
    same = drawn(made, [0], [2], negative={"label": torch.tensor([2])}, guidance_scale=7.0)
    assert torch.allclose(same, drawn(made, [0], [2], guidance_scale=1.0), atol=1e-3)  # nothing to move away from
    assert not torch.allclose(drawn(made, [0], [2], guidance_scale=7.0), same, atol=1e-2)


def test_every_picture_may_have_a_scale_of_its_own():
    made = model()
    *_, both = made.draw({"label": torch.tensor([2, 2])}, [0, 0], SHAPE, SamplingConfig(steps=2), scales=[1.0, 5.0])
    for z, scale in zip(both, (1.0, 5.0)):
        assert torch.allclose(z, drawn(made, [0], [2], steps=2, guidance_scale=scale)[0], atol=1e-4)


def test_a_worse_model_guides_in_place_of_the_hidden_condition():
    made, worse = model(dropout=0.0), model(dropout=0.0)
    worse.load_state_dict({name: 0.5 * x for name, x in made.state_dict().items()})
    alone = drawn(made, [0], [2], steps=1, sampler="ddim", guidance_scale=1.0)
    bad = drawn(worse, [0], [2], steps=1, sampler="ddim", guidance_scale=1.0)
    made.guide_by(worse)
    guided = drawn(made, [0], [2], steps=1, sampler="ddim", guidance_scale=3.0)
    assert torch.allclose(guided, bad + 3 * (alone - bad), atol=1e-4) and not torch.allclose(guided, alone, atol=1e-3)
    with pytest.raises(UserError, match="another schedule"):
        made.guide_by(model("flow"))


@pytest.mark.parametrize("change, words", [
    ({"guidance_interval": (0.8, 0.2)}, "guidance_interval is"),
    ({"sampler": "magic"}, "sampler is 'magic'"), ({"steps": 0}, "steps is 0"), ({"steps": 1001}, "steps is 1001"),
    ({"eta": 2.0, "sampler": "ddim"}, "eta is 2.0"), ({"spacing": "odd"}, "spacing is 'odd'"),
])  # fmt: skip
def test_settings_that_cannot_be_drawn_with_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        drawn(model(), [0], [0], **change)


def test_guidance_without_anything_hidden_in_training_is_refused():
    with pytest.raises(UserError, match="guidance_scale must be 1"):
        drawn(model(dropout=0.0), [0], [0], guidance_scale=2.0)
    assert torch.isfinite(drawn(model(dropout=0.0), [0], [0], guidance_scale=1.0)).all()


def test_noise_belongs_to_its_seed_through_all_steps():
    three, one = Noise([7, 8, 9], SHAPE, torch.device("cpu")), Noise([8], SHAPE, torch.device("cpu"))
    for _ in range(3):
        assert torch.equal(three()[1:2], one())
    assert not torch.equal(Noise([8], SHAPE, "cpu")(), one())


# ---- a loaded run


@pytest.fixture(scope="module")
def loaded(reader):
    return latentdiff.load_run(reader)


def test_weights_in_the_type_of_the_products_draw_the_same_bits():
    """Beside those that autocast casts at every call; the norms keep theirs, and so does the sum over steps."""
    made = model().requires_grad_(False)
    guide = model(dropout=0.2).requires_grad_(False)
    made.guide_by(guide)

    def half():
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            given = {"label": torch.tensor([1, 3])}
            return list(made.draw(given, [5, 6], SHAPE, SamplingConfig(steps=4, guidance_scale=2.0)))[-1]

    before = half()
    assert made.cast_weights(torch.float32) is made and torch.equal(half(), before)
    made.cast_weights(torch.bfloat16)
    assert {p.dtype for p in made.unet.parameters()} == {torch.float32, torch.bfloat16}
    assert guide.unet.conv_out.weight.dtype == torch.bfloat16
    assert torch.equal(half(), before) and before.dtype == torch.float32


def test_a_run_is_loaded_by_folder_or_by_name(reader, monkeypatch, loaded):
    monkeypatch.setenv("LATENTDIFF_RUNS", str(reader.parent))
    for path in (reader, str(reader), reader.name):
        again = latentdiff.load_run(path)
        assert isinstance(again, LatentDiffusion)
        assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), loaded.state_dict().values()))
    with pytest.raises(UserError, match="no run at nowhere"):
        latentdiff.load_run("nowhere")


def test_a_stage_one_run_is_an_autoencoder(unbroken_one):
    autoencoder = latentdiff.load_run(unbroken_one)
    assert isinstance(autoencoder, Autoencoder) and not autoencoder.training


def test_what_is_loaded_does_not_train_and_is_the_average(reader, loaded):
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    ema = checkpoint.read_tensors(reader / "checkpoints" / "step_00000200" / "ema.safetensors")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in ema.items())


def test_an_unfinished_run_gives_its_newest_average(unbroken_two, copy_of):
    run = copy_of(unbroken_two)
    (run / "model.safetensors").unlink()
    assert isinstance(latentdiff.load_run(run), LatentDiffusion)
    for path in sorted((run / "checkpoints").iterdir()):
        path.rename(run / path.name)
    with pytest.raises(UserError, match="has no weights yet"):
        latentdiff.load_run(run)


def test_samples_are_pictures_and_settings_override_the_runs_own(loaded):
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
    assert torch.equal(z, (mean - autoencoder.shift) * autoencoder.scale) and logvar.shape == z.shape


def test_conditioner_unet_and_schedule_are_open(loaded):
    fields = loaded.tokens(["a red star", "a blue ring"])
    cond = loaded.conditioner(fields, torch.tensor([False, True]))
    empty = loaded.conditioner(loaded.tokens(["", ""]), torch.tensor([False, False]))
    assert torch.allclose(cond.context[1], empty.context[1], atol=1e-6) and cond.context_mask.dtype == torch.bool
    z_t = torch.randn(2, *loaded.latent_shape())
    assert loaded.unet(z_t, torch.tensor([10.0, 500.0]), cond).shape == z_t.shape
    vp = Schedule(ScheduleConfig()).alphas_cumprod
    assert vp.shape == (1000,) and (vp.diff() < 0).all()


def test_statistics_of_the_frozen_autoencoder_are_checked_against_the_data(loaded):
    autoencoder, said, r = loaded.autoencoder, [], recipe.DiffusionRecipe()
    scale = autoencoder.scale.flatten().double().numpy()
    right = (0 * scale, 1 / scale**2)
    for measured, words in ((right, 0), ((right[0], 1.2 * right[1]), 0), ((right[0], 2 * right[1]), 1)):
        said.clear()
        build.choose_statistics(r, autoencoder, measured, said.append)
        assert len(said) == words
    assert "1.41" in said[0] and "autoencoder.latent_stats=data" in said[0]


def test_the_settings_of_the_recipe_are_the_runs_own(loaded):
    assert loaded.sampling == SamplingConfig(steps=4, guidance_scale=2.0)
    default = loaded.sample("a star", seed=1)
    assert torch.equal(default, loaded.sample("a star", seed=1, **vars(replace(loaded.sampling))))
