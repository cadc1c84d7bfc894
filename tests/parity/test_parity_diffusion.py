"""Schedules, DDIM and the training loss give the original release's numbers (tests/fixtures/vectors)."""

import json

import pytest
import torch
import vectors
from safetensors.torch import load_file
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert.compvis import key_map
from latentdiff.diffusion.guidance import blend_known
from latentdiff.diffusion.loss import ObjectiveConfig, loss_weight
from latentdiff.diffusion.parameterization import to_x0_eps, training_target
from latentdiff.diffusion.samplers import Denoise, ddim
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps
from latentdiff.diffusion.unet import UNet, UNetConfig

NAMES = {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt"}  # the original's -> ours
SCHEDULES = ["linear_0.0015_0.0195", "sqrt_linear_T50", "sqrt_T50"]
CELEBA = Schedule(ScheduleConfig(beta_start=0.0015, beta_end=0.0195))
WRONG = Schedule(ScheduleConfig(kind="linear", beta_start=0.0015, beta_end=0.0195))


def variant(name: str) -> tuple[ScheduleConfig, dict[str, Tensor]]:
    given = json.loads((vectors.FOLDER / "schedule.json").read_text())["variants"][name]
    start, end = given.get("linear_start", 1e-4), given.get("linear_end", 2e-2)
    config = ScheduleConfig(NAMES[given["beta_schedule"]], given["timesteps"], start, end)
    return config, load_file(vectors.FOLDER / f"schedule_{name}.safetensors")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_equals_the_original_bit_for_bit(name: str) -> None:
    config, want = variant(name)
    schedule, t = Schedule(config), torch.arange(config.timesteps)
    assert torch.equal(schedule.alphas_cumprod, want["alphas_cumprod"])
    assert torch.equal(schedule.alpha(t), want["sqrt_alphas_cumprod"])
    assert torch.equal(schedule.sigma(t), want["sqrt_one_minus_alphas_cumprod"])
    wrong = {"scaled_linear": "linear", "linear": "sqrt", "sqrt": "linear"}[config.kind]
    other = Schedule(ScheduleConfig(wrong, config.timesteps, config.beta_start, config.beta_end))
    assert not torch.equal(other.alphas_cumprod, want["alphas_cumprod"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_weights_of_the_bound_equal_the_original(name: str) -> None:
    """lvlb_weights of eps; the original's element 0 is element 1."""
    config, want = variant(name)
    t = torch.arange(config.timesteps)
    plain, bound = (loss_weight(ObjectiveConfig(elbo_weight=elbo), t, Schedule(config)) for elbo in (0.0, 1.0))
    assert torch.allclose((bound - plain).float(), want["lvlb_weights"], rtol=1e-3)  # theirs: from float32 tables


def test_the_uniform_grid_equals_the_original_and_refuses_what_crashed_there() -> None:
    want = json.loads((vectors.FOLDER / "ddim_timesteps.json").read_text())
    refused = set(want["uniform_index_error_for_T1000"])
    for steps in (1, 2, 5, 7, 20, 50, 64, 200, 400, 500):
        grid = sampling_timesteps(steps, CELEBA, "uniform").flip(0).tolist()
        assert len(grid) == want["uniform"][str(steps)]["n"] and grid[-1] == want["uniform"][str(steps)]["last"][-1]
        assert steps not in refused
    for steps, grid in want["uniform_full"].items():
        if int(steps) not in refused:
            assert sampling_timesteps(int(steps), CELEBA, "uniform").flip(0).tolist() == grid
    for steps in sorted(refused):
        with pytest.raises(UserError, match="trailing"):
            sampling_timesteps(steps, CELEBA, "uniform")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_draws_the_original_amount_of_noise(eta: float) -> None:
    tables = load_file(vectors.FOLDER / "ddim_parameters.safetensors")
    x, ts = torch.zeros(1, 1, dtype=torch.float64), sampling_timesteps(20, CELEBA, "uniform")
    nothing, one = torch.zeros_like(x), torch.ones_like(x)
    drawn = [x for x, _ in ddim(lambda x, t: (nothing, nothing), x, ts, CELEBA, eta, lambda: one, last=0.0)]
    kept = [x for x, _ in ddim(lambda x, t: (one, nothing), x, ts, CELEBA, eta, lambda: nothing, last=0.0)]
    sigmas, alphas = tables[f"uniform.S20.eta{eta}.sigmas"], tables[f"uniform.S20.eta{eta}.alphas_prev"]
    assert torch.allclose(torch.cat(drawn)[:, 0].flip(0), sigmas, rtol=1e-4, atol=0)  # theirs: 1 - alpha in float32
    assert torch.allclose(torch.cat(kept)[:, 0].flip(0) ** 2, alphas, rtol=1e-7, atol=0)


def network(name: str) -> UNet:
    config = UNetConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), head_channels=32)
    model, weights = UNet(config, 3, 3), vectors.weights(vectors.case(name)[0])
    weights = {key.removeprefix("model.diffusion_model."): value for key, value in weights.items()}
    model.load_state_dict(key_map.unet_from_original(weights, model))
    return model.double().eval()


def denoiser(schedule: Schedule) -> Denoise:
    model = network("ddim_uncond")
    return lambda x, t: to_x0_eps("eps", model(x, t), x, schedule.alpha(t), schedule.sigma(t))


GIVEN = vectors.inputs(vectors.case("ddim_uncond")[1], torch.float64)
WANT = vectors.outputs(vectors.case("ddim_uncond")[1], torch.float64)
UNIFORM = sampling_timesteps(5, CELEBA, "uniform")
QUAD = torch.tensor([801, 451, 201, 51, 1])


def run(ts: Tensor, eta: float, temperature: float = 1.0, schedule: Schedule = CELEBA, masked: bool = False, last=0.0):
    """The original's run: ends at the noise level of t = 0; its noises in the order of the calls."""
    noises, mask_noises = iter(GIVEN["noises"]), iter(GIVEN["mask_noises"])
    denoise = denoiser(schedule)
    if masked:
        denoise = blend_known(denoise, GIVEN["x0"], GIVEN["mask"], lambda: next(mask_noises), schedule)
    return list(ddim(denoise, GIVEN["x_T"], ts, schedule, eta, lambda: temperature * next(noises), last))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("eta0", {"ts": UNIFORM, "eta": 0.0}),
        ("eta1", {"ts": UNIFORM, "eta": 1.0}),
        ("eta0.5_temp0.8", {"ts": UNIFORM, "eta": 0.5, "temperature": 0.8}),
        ("mask_eta1", {"ts": UNIFORM, "eta": 1.0, "masked": True}),
        ("quad_eta1", {"ts": QUAD, "eta": 1.0}),
        ("timesteps4_eta0", {"ts": UNIFORM[2:], "eta": 0.0}),
    ],
)
def test_ddim_equals_the_original(name: str, arguments: dict) -> None:
    steps = run(**arguments)
    assert vectors.close(steps[-1][0], WANT[f"{name}.samples"], 1e-6)
    if f"{name}.x_inter" in WANT:
        for k, (x, x0) in enumerate(steps, 1):
            assert vectors.close(x, WANT[f"{name}.x_inter"][k], 1e-6)
            assert vectors.close(x0, WANT[f"{name}.pred_x0"][k], 1e-6)


@pytest.mark.parametrize(
    "change",
    [{"ts": UNIFORM + 1}, {"schedule": WRONG}, {"last": None}, {"eta": 0.1}],
    ids=["grid", "schedule", "end", "eta"],
)
def test_a_damaged_ddim_does_not_equal_the_original(change: dict) -> None:
    steps = run(**({"ts": UNIFORM, "eta": 0.0} | change))
    assert not vectors.close(steps[-1][0], WANT["eta0.samples"], 1e-3)


@pytest.mark.parametrize("name", ["plosses_eps_l1", "plosses_eps_l2"])
def test_the_training_loss_and_its_gradients_equal_the_original(name: str) -> None:
    tensors = vectors.case(name)[1]
    given, want = vectors.inputs(tensors, torch.float64), vectors.outputs(tensors, torch.float64)
    model, t = network(name), given["t"]
    x_t = CELEBA.diffuse(given["x_start"], given["noise"], t)
    assert vectors.close(x_t, want["x_noisy"], 1e-7)
    error = model(x_t, t) - training_target("eps", given["x_start"], given["noise"], CELEBA.alpha(t), CELEBA.sigma(t))
    loss = (error.abs() if name.endswith("l1") else error.square()).mean()
    assert vectors.close(loss, want["loss"], 1e-7)
    loss.backward()
    names = {place.name: ours for ours, place in key_map.unet_places(model).items()}
    for key in ("input_blocks.0.0.weight", "out.2.bias", "time_embed.0.bias"):
        gradient = model.get_parameter(names[key]).grad
        assert vectors.close(gradient, want[f"grad.model.diffusion_model.{key}"], 1e-6)
    wrong = model(WRONG.diffuse(given["x_start"], given["noise"], t), t) - given["noise"]
    assert not vectors.close((wrong.abs() if name.endswith("l1") else wrong.square()).mean(), want["loss"], 1e-5)
