"""Schedulers of diffusers <-> noise schedule, prediction and timestep spacing."""

from typing import NamedTuple

import torch

from latentdiff.config import UserError
from latentdiff.convert.diffusers import model_folder
from latentdiff.convert.diffusers.model_folder import Options
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig

KINDS = {"scaled_linear": "scaled_linear", "linear": "linear", "squaredcos_cap_v2": "cosine"}  # diffusers -> latentdiff
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SPACINGS = {  # latentdiff -> diffusers, for spacings with the same timesteps in both
    "trailing": {"timestep_spacing": "trailing", "steps_offset": 0},
    "uniform": {"timestep_spacing": "leading", "steps_offset": 1},  # of the original release
}
FIELDS = {  # diffusers -> ScheduleConfig
    "num_train_timesteps": "timesteps", "beta_start": "beta_start", "beta_end": "beta_end",
    "rescale_betas_zero_snr": "zero_terminal_snr",
}  # fmt: skip
DEFAULTS = {  # of diffusers, for options that scheduler_config.json does not have
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading", "steps_offset": 0,
}  # fmt: skip
FIXED = {"trained_betas": None}
SAMPLING = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}  # latentdiff's samplers do this


class NoiseConfig(NamedTuple):
    schedule: ScheduleConfig = ScheduleConfig()
    prediction: str = "eps"
    timestep_spacing: str = "trailing"


def from_diffusers(config: Options) -> tuple[NoiseConfig, list[str]]:
    """scheduler_config.json -> settings, and the options of sampling that latentdiff does not follow."""
    o = model_folder.read_options(config, DEFAULTS, FIXED, config)  # the other options concern sampling
    kind, beta_schedule, prediction = config.get("_class_name", ""), o["beta_schedule"], o["prediction_type"]
    if "FlowMatch" in kind or beta_schedule not in KINDS or prediction not in PREDICTIONS:
        raise UserError(
            f"the scheduler is a {kind} with beta_schedule={beta_schedule!r} and prediction_type={prediction!r}; these "
            f"must be one of {', '.join(KINDS)} and one of {', '.join(PREDICTIONS)}, without flow matching"
        )
    schedule = ScheduleConfig(KINDS[beta_schedule], **{dst: o[src] for src, dst in FIELDS.items()})
    options = {name: o[name] for name in ("timestep_spacing", "steps_offset")}
    spacing = next((dst for dst, src in SPACINGS.items() if src == options), "trailing")
    ignored = [f"{name}={config[name]}" for name, value in SAMPLING.items() if config.get(name, value) != value]
    ignored += [] if SPACINGS[spacing] == options else [f"{name}={value}" for name, value in options.items()]
    return NoiseConfig(schedule, PREDICTIONS[prediction], spacing), ignored


def to_diffusers(schedule: ScheduleConfig, prediction: str, spacing: str) -> Options:
    """scheduler_config.json of a DDIMScheduler; UserError if it cannot express the schedule or the prediction."""
    predictions = {dst: src for src, dst in PREDICTIONS.items()}
    if schedule.kind == "flow" or prediction not in predictions:
        raise UserError(
            f"schedule.kind={schedule.kind} with objective.prediction={prediction} has no counterpart in diffusers' "
            f"DDIMScheduler; it has variance-preserving schedules, and the predictions {', '.join(predictions)}"
        )
    kinds = {dst: src for src, dst in KINDS.items()}
    options = {
        "_class_name": "DDIMScheduler", "_diffusers_version": model_folder.VERSION,
        "beta_schedule": kinds.get(schedule.kind, "linear"), "prediction_type": predictions[prediction],
    } | {src: getattr(schedule, dst) for src, dst in FIELDS.items()}  # fmt: skip
    options |= SAMPLING | SPACINGS.get(spacing, SPACINGS["trailing"])
    return options if has_name(schedule) else options | {
        "trained_betas": _betas(schedule), "rescale_betas_zero_snr": False}  # fmt: skip


def has_name(schedule: ScheduleConfig) -> bool:
    """Whether diffusers has a name for the schedule. Others are exported as betas, which are not imported again."""
    is_default = schedule.kind != "cosine" or schedule.cosine_s == ScheduleConfig.cosine_s
    return schedule.kind in KINDS.values() and schedule.snr_shift == 1 and is_default


def _betas(config: ScheduleConfig) -> list[float]:
    alphas_cumprod = torch.sigmoid(Schedule(config).log_snr(torch.arange(config.timesteps, dtype=torch.float64)))
    alphas_cumprod_prev = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / alphas_cumprod_prev).tolist()
