"""Samplers equal the schedulers of diffusers, where diffusers has the same."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from latentdiff.diffusion.parameterization import TARGET_COEFFS, to_x0_eps
from latentdiff.diffusion.samplers import Denoise, broadcast_t, ipndm, noise_levels, plms, sample
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig, append_dims, sampling_timesteps

diffusers = pytest.importorskip("diffusers")

PATH = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
TRAILING = {"timestep_spacing": "trailing"}
SCHEDULE = Schedule(ScheduleConfig())
X, NOISE = torch.randn(2, 2, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KINDS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SCHEDULERS = {  # sampler -> scheduler of diffusers, and its options
    "ddim": ("DDIMScheduler", TRAILING | {"clip_sample": False}),
    "ddpm": ("DDIMScheduler", TRAILING | {"clip_sample": False}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", TRAILING),
    "dpmpp_2m_sde": ("DPMSolverMultistepScheduler", TRAILING | {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", TRAILING),
}


def network(x: Tensor, t: Tensor) -> Tensor:
    """Nonlinear in x and t, so that an error in any step changes the result."""
    return torch.sin(2 * x + t.to(x.dtype).view(-1, 1, 1, 1) / 300) + 0.3 * x.flip(-1)


def denoiser(kind: str) -> Denoise:
    def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
        t = broadcast_t(t, x)
        return to_x0_eps(kind, network(x, t), x, SCHEDULE.alpha(t), SCHEDULE.sigma(t))

    return denoise


def sample_diffusers(scheduler, steps: int, extra: dict) -> Tensor:
    scheduler.set_timesteps(steps)
    x = X
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t[None]), t, x, **extra).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_sampler_equals_that_of_diffusers(name: str, kind: str, steps: int) -> None:
    class_name, options = SCHEDULERS[name]
    scheduler = getattr(diffusers, class_name)(**PATH, **options, prediction_type=KINDS[kind])
    if class_name == "DDIMScheduler":
        scheduler.final_alpha_cumprod = torch.tensor(1.0)
    extra = {"ddpm": {"eta": 1.0, "variance_noise": NOISE}, "dpmpp_2m_sde": {"variance_noise": NOISE}}.get(name, {})
    *_, x0 = sample(name, denoiser(kind), X, sampling_timesteps(steps, SCHEDULE), SCHEDULE, noise=lambda: NOISE)
    expected = sample_diffusers(scheduler, steps, extra)
    assert torch.allclose(x0, expected, atol=2e-4 * expected.abs().max()), (x0 - expected).abs().max()


def test_another_sampler_does_not_equal_that_of_diffusers() -> None:
    expected = sample_diffusers(diffusers.UniPCMultistepScheduler(**PATH, **TRAILING), 10, {})
    for name in ("ddim", "dpmpp_2m", "heun", "plms", "ipndm"):
        *_, x0 = sample(name, denoiser("eps"), X, sampling_timesteps(10, SCHEDULE), SCHEDULE)
        assert not torch.allclose(x0, expected, atol=1e-3 * expected.abs().max())


@pytest.mark.parametrize("steps", [2, 5, 10, 50])
def test_plms_equals_that_of_diffusers_and_of_the_original_release(steps: int) -> None:
    """It ends at the noise level of t = 0 and evaluates its second timestep twice."""
    scheduler = diffusers.PNDMScheduler(**PATH, skip_prk_steps=True, steps_offset=1, timestep_spacing="leading")
    ts = sampling_timesteps(steps, SCHEDULE, "uniform")
    *_, (x, _) = plms(denoiser("eps"), X, noise_levels(ts, SCHEDULE, last=0.0))
    scheduler.set_timesteps(steps)
    assert list(dict.fromkeys(scheduler.timesteps.tolist())) == ts.tolist()
    expected = sample_diffusers(scheduler, steps, {})
    assert torch.allclose(x, expected, atol=1e-5 * expected.abs().max()), (x - expected).abs().max()


@pytest.mark.parametrize("steps", [2, 3, 4, 5, 10])
def test_ipndm_equals_that_of_diffusers_on_its_own_schedule(steps: int) -> None:
    """Started one step after the noisiest, where alpha is 0 and diffusers divides by it."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    alphas, sigmas = scheduler.alphas.double(), scheduler.betas.double()
    levels = lambda table: lambda t: table[(steps - t).long()]  # noqa: E731 - timestep steps - i is the i-th of diffusers
    path = SimpleNamespace(
        alpha=levels(alphas), sigma=levels(sigmas), log_snr=levels(2 * (alphas.clamp(min=1e-9) / sigmas).log())
    )

    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        """The output is v, and eps = sigma·x + alpha·v."""
        t = broadcast_t(t, x)
        alpha, sigma = append_dims(path.alpha(t), x), append_dims(path.sigma(t), x)
        v = network(x, t)
        return alpha * x - sigma * v, sigma * x + alpha * v

    *_, (x_ipndm, _) = ipndm(denoise, X, noise_levels(torch.arange(steps - 1, 0, -1), path))
    x = X
    for i, t in enumerate(scheduler.timesteps[1:], 1):
        x = scheduler.step(network(x, torch.tensor([float(steps - i)])), t, x).prev_sample
    assert torch.allclose(x_ipndm, x, atol=1e-6 * x.abs().max()), (x_ipndm - x).abs().max()


@pytest.mark.parametrize("steps", [1, 2, 4, 10])
@pytest.mark.parametrize("kind", KINDS)
def test_heun_equals_that_of_diffusers_in_its_coordinates(kind: str, steps: int) -> None:
    """diffusers solves for x / alpha, so the path here has alpha 1 and sigma / alpha as sigma."""
    scheduler = diffusers.HeunDiscreteScheduler(**PATH, **TRAILING, prediction_type=KINDS[kind])
    scale = lambda t: torch.exp(SCHEDULE.log_snr(t) / -2)  # noqa: E731
    path = SimpleNamespace(alpha=torch.ones_like, sigma=scale, log_snr=SCHEDULE.log_snr)

    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        t = broadcast_t(t, x)
        x0, _ = denoiser(kind)(x * append_dims(SCHEDULE.alpha(t), x), t)
        return x0, (x - x0) / append_dims(scale(t), x)

    scheduler.set_timesteps(steps)
    start = x = X * scheduler.sigmas[0].double()
    for t in scheduler.timesteps:
        x = scheduler.step(network(scheduler.scale_model_input(x, t), t[None]), t, x).prev_sample
    for name, same in (("heun", True), ("ddim", steps == 1)):
        *_, x0 = sample(name, denoise, start, sampling_timesteps(steps, SCHEDULE), path)
        assert torch.allclose(x0, x, atol=2e-4 * x.abs().max()) == same, name


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 4, 10, 25])
@pytest.mark.parametrize("name, class_name", [("ddim", "Euler"), ("heun", "Heun")])
def test_a_sampler_of_the_straight_path_equals_that_of_diffusers(name, class_name, steps: int, shift: float) -> None:
    """In diffusers the timestep given to the network is sigma times T, and the last one is shifted twice."""
    scheduler = getattr(diffusers, f"FlowMatch{class_name}DiscreteScheduler")(shift=shift)
    path = Schedule(ScheduleConfig(kind="flow", snr_shift=shift))

    def denoise(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
        alpha, sigma = path.alpha(broadcast_t(t, x)), path.sigma(broadcast_t(t, x))
        return to_x0_eps("flow", network(x, sigma * path.T), x, alpha, sigma)

    ts = torch.linspace(1, scheduler.sigma_min, steps, dtype=torch.float64) * path.T - 1
    assert shift != 1 or torch.allclose(ts, sampling_timesteps(steps, path, "linspace"), atol=1e-6)
    expected = sample_diffusers(scheduler, steps, {})
    *_, x0 = sample(name, denoise, X, ts, path)
    assert torch.allclose(x0, expected.double(), atol=2e-4 * expected.abs().max()), (x0 - expected).abs().max()
    *_, other = sample({"ddim": "heun", "heun": "ddim"}[name], denoise, X, ts, path)
    assert steps == 1 or not torch.allclose(other, expected.double(), atol=1e-3 * expected.abs().max())


def test_every_parameterization_is_compared() -> None:
    assert set(TARGET_COEFFS) == set(KINDS) | {"flow"}
