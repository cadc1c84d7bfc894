"""Schedules, DDIM and the training loss equal the original release (tests/fixtures/vectors)."""

import json

import pytest
import torch
import vectors
from safetensors.torch import load_file
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert import key_map
from latentdiff.convert.compvis import key_maps
from latentdiff.diffusion.guidance import blend_known
from latentdiff.diffusion.loss import ObjectiveConfig, loss_weight
from latentdiff.diffusion.parameterization import to_x0_eps, training_target
from latentdiff.diffusion.samplers import Denoise, broadcast_t, ddim, noise_levels
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, sampling_timesteps
from latentdiff.diffusion.unet import UNet, UNetConfig

KINDS = {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt"}  # beta_schedule -> ScheduleConfig.kind
SCHEDULES = ["linear_0.0015_0.0195", "sqrt_linear_T50", "sqrt_T50"]
CELEBA = Schedule(ScheduleConfig(beta_start=0.0015, beta_end=0.0195))
WRONG = Schedule(ScheduleConfig(kind="linear", beta_start=0.0015, beta_end=0.0195))


def variant(name: str) -> tuple[ScheduleConfig, dict[str, Tensor]]:
    options = json.loads((vectors.FOLDER / "schedule.json").read_text())["variants"][name]
    start, end = options.get("linear_start", 1e-4), options.get("linear_end", 2e-2)
    config = ScheduleConfig(KINDS[options["beta_schedule"]], options["timesteps"], start, end)
    return config, load_file(vectors.FOLDER / f"schedule_{name}.safetensors")


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_equals_the_original_bit_for_bit(name: str) -> None:
    config, expected = variant(name)
    schedule, t = Schedule(config), torch.arange(config.timesteps)
    assert torch.equal(schedule.alphas_cumprod, expected["alphas_cumprod"])
    assert torch.equal(schedule.alpha(t), expected["sqrt_alphas_cumprod"])
    assert torch.equal(schedule.sigma(t), expected["sqrt_one_minus_alphas_cumprod"])
    wrong = {"scaled_linear": "linear", "linear": "sqrt", "sqrt": "linear"}[config.kind]
    other = Schedule(ScheduleConfig(wrong, config.timesteps, config.beta_start, config.beta_end))
    assert not torch.equal(other.alphas_cumprod, expected["alphas_cumprod"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_weights_of_the_variational_bound_equal_the_original(name: str) -> None:
    """lvlb_weights of eps; in the original the first element is a copy of the second."""
    config, expected = variant(name)
    t = torch.arange(config.timesteps)
    plain, bound = (loss_weight(ObjectiveConfig(elbo_weight=elbo), t, Schedule(config)) for elbo in (0.0, 1.0))
    assert torch.allclose((bound - plain).float(), expected["lvlb_weights"], rtol=1e-3)  # float32 there


def test_the_uniform_grid_equals_the_original_and_refuses_where_the_original_crashes() -> None:
    expected = json.loads((vectors.FOLDER / "ddim_timesteps.json").read_text())
    refused = set(expected["uniform_index_error_for_T1000"])
    for steps in (1, 2, 5, 7, 20, 50, 64, 200, 400, 500):
        grid = sampling_timesteps(steps, CELEBA, "uniform").flip(0).tolist()
        assert len(grid) == expected["uniform"][str(steps)]["n"]
        assert grid[-1] == expected["uniform"][str(steps)]["last"][-1]
        assert steps not in refused
    for steps, grid in expected["uniform_full"].items():
        if int(steps) not in refused:
            assert sampling_timesteps(int(steps), CELEBA, "uniform").flip(0).tolist() == grid
    for steps in sorted(refused):
        with pytest.raises(UserError, match="trailing"):
            sampling_timesteps(steps, CELEBA, "uniform")


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_adds_the_amount_of_noise_of_the_original(eta: float) -> None:
    tables = load_file(vectors.FOLDER / "ddim_parameters.safetensors")
    x, ts = torch.zeros(1, 1, dtype=torch.float64), sampling_timesteps(20, CELEBA, "uniform")
    zero, one, levels = torch.zeros_like(x), torch.ones_like(x), noise_levels(ts, CELEBA, last=0.0)
    noise_std = [x for x, _ in ddim(lambda x, t: (zero, zero), x, levels, eta, lambda: one)]
    alpha = [x for x, _ in ddim(lambda x, t: (one, zero), x, levels, eta, lambda: zero)]
    sigmas, alphas = tables[f"uniform.S20.eta{eta}.sigmas"], tables[f"uniform.S20.eta{eta}.alphas_prev"]
    assert torch.allclose(torch.cat(noise_std)[:, 0].flip(0), sigmas, rtol=1e-4, atol=0)  # the original: float32
    assert torch.allclose(torch.cat(alpha)[:, 0].flip(0) ** 2, alphas, rtol=1e-7, atol=0)


def network(name: str) -> UNet:
    config = UNetConfig(channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), head_channels=32)
    model, weights = UNet(config, 3, 3), vectors.weights(vectors.case(name)[0])
    weights = {key.removeprefix("model.diffusion_model."): value for key, value in weights.items()}
    keys = key_maps.unet_key_map(model)
    model.load_state_dict(key_map.to_dst(weights, keys, key_map.shapes_of(model))[0])
    return model.double().eval()


def denoiser(schedule: Schedule) -> Denoise:
    model = network("ddim_uncond")

    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        t = broadcast_t(t, x)
        return to_x0_eps("eps", model(x, t), x, schedule.alpha(t), schedule.sigma(t))

    return denoise


INPUTS = vectors.inputs(vectors.case("ddim_uncond")[1], torch.float64)
EXPECTED = vectors.outputs(vectors.case("ddim_uncond")[1], torch.float64)
UNIFORM = sampling_timesteps(5, CELEBA, "uniform")
QUAD = torch.tensor([801, 451, 201, 51, 1])


def run(ts: Tensor, eta: float, temperature: float = 1.0, schedule: Schedule = CELEBA, masked: bool = False, last=0.0):
    """Sample as in the original, which ends at the noise level of t = 0, with the stored noises in order of use."""
    noises, mask_noises = iter(INPUTS["noises"]), iter(INPUTS["mask_noises"])
    denoise = denoiser(schedule)
    if masked:
        denoise = blend_known(denoise, INPUTS["x0"], INPUTS["mask"], lambda: next(mask_noises), schedule)
    levels = noise_levels(ts, schedule, last)
    return list(ddim(denoise, INPUTS["x_T"], levels, eta, lambda: temperature * next(noises)))


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
    assert vectors.close(steps[-1][0], EXPECTED[f"{name}.samples"], 1e-6)
    if f"{name}.x_inter" in EXPECTED:
        for k, (x, x0) in enumerate(steps, 1):
            assert vectors.close(x, EXPECTED[f"{name}.x_inter"][k], 1e-6)
            assert vectors.close(x0, EXPECTED[f"{name}.pred_x0"][k], 1e-6)


@pytest.mark.parametrize(
    "change",
    [{"ts": UNIFORM + 1}, {"schedule": WRONG}, {"last": None}, {"eta": 0.1}],
    ids=["grid", "schedule", "end", "eta"],
)
def test_a_damaged_ddim_does_not_equal_the_original(change: dict) -> None:
    steps = run(**({"ts": UNIFORM, "eta": 0.0} | change))
    assert not vectors.close(steps[-1][0], EXPECTED["eta0.samples"], 1e-3)


@pytest.mark.parametrize("name", ["plosses_eps_l1", "plosses_eps_l2"])
def test_the_training_loss_and_its_gradients_equal_the_original(name: str) -> None:
    tensors = vectors.case(name)[1]
    inputs, expected = vectors.inputs(tensors, torch.float64), vectors.outputs(tensors, torch.float64)
    model, t, x0, eps = network(name), inputs["t"], inputs["x_start"], inputs["noise"]
    x_t = CELEBA.diffuse(x0, eps, t)
    assert vectors.close(x_t, expected["x_noisy"], 1e-7)
    error = model(x_t, t) - training_target("eps", x0, eps, CELEBA.alpha(t), CELEBA.sigma(t))
    loss = (error.abs() if name.endswith("l1") else error.square()).mean()
    assert vectors.close(loss, expected["loss"], 1e-7)
    loss.backward()
    names = {entry.src[0]: name for name, entry in key_maps.unet_key_map(model).items()}
    for key in ("input_blocks.0.0.weight", "out.2.bias", "time_embed.0.bias"):
        gradient = model.get_parameter(names[key]).grad
        assert vectors.close(gradient, expected[f"grad.model.diffusion_model.{key}"], 1e-6)
    wrong = model(WRONG.diffuse(x0, eps, t), t) - eps
    assert not vectors.close((wrong.abs() if name.endswith("l1") else wrong.square()).mean(), expected["loss"], 1e-5)
