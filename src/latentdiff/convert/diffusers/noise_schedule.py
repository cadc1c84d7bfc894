"""diffusers' schedulers <-> our schedule, prediction and timesteps."""

import torch

from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers.folder import Options
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig

KINDS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}  # ours -> theirs
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
GRIDS = {  # ours -> theirs, where both visit the same timesteps
    "trailing": {"timestep_spacing": "trailing", "steps_offset": 0},
    "uniform": {"timestep_spacing": "leading", "steps_offset": 1},  # the original's
}
READ = {  # what scheduler_config.json leaves out has these values
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear",
    "prediction_type": "epsilon", "rescale_betas_zero_snr": False, "timestep_spacing": "leading", "steps_offset": 0,
}  # fmt: skip
FIXED = {"trained_betas": None}
OURS = {"clip_sample": False, "thresholding": False, "set_alpha_to_one": True}  # as sampling is here


def from_theirs(config: Options) -> tuple[ScheduleConfig, str, str, list[str]]:
    """scheduler_config.json -> schedule, prediction, spacing, and what sampling here will not do."""
    kind = config.get("_class_name", "")
    o = folders.options(config, READ, FIXED, config)  # the rest is how to sample, which every run may choose anew
    kinds, predictions = ({theirs: ours for ours, theirs in table.items()} for table in (KINDS, PREDICTIONS))
    if "FlowMatch" in kind or o["beta_schedule"] not in kinds or o["prediction_type"] not in predictions:
        raise UserError(
            f"a {kind} with beta_schedule={o['beta_schedule']!r} and prediction_type={o['prediction_type']!r} is not "
            f"known; known are {', '.join(kinds)} and {', '.join(predictions)}"
        )
    schedule = ScheduleConfig(
        kind=kinds[o["beta_schedule"]],
        timesteps=o["num_train_timesteps"],
        beta_start=o["beta_start"],
        beta_end=o["beta_end"],
        zero_terminal_snr=o["rescale_betas_zero_snr"],
    )
    grid = {name: o[name] for name in ("timestep_spacing", "steps_offset")}
    spacing = next((ours for ours, theirs in GRIDS.items() if theirs == grid), "trailing")
    notes = [f"{name}={config[name]}" for name, ours in OURS.items() if config.get(name, ours) != ours]
    notes += [] if GRIDS[spacing] == grid else [f"{name}={value}" for name, value in grid.items()]
    return schedule, predictions[o["prediction_type"]], spacing, notes


def to_theirs(schedule: ScheduleConfig, prediction: str, spacing: str) -> Options:
    """scheduler_config.json of a DDIMScheduler; UserError where it cannot hold this schedule or prediction."""
    if schedule.kind == "flow" or prediction not in PREDICTIONS:
        raise UserError(
            f"schedule.kind={schedule.kind} with prediction={prediction}: diffusers' DDIMScheduler knows paths that "
            f"preserve the variance, and the predictions {', '.join(PREDICTIONS)}"
        )
    options = {
        "_class_name": "DDIMScheduler", "_diffusers_version": folders.VERSION,
        "num_train_timesteps": schedule.timesteps, "beta_start": schedule.beta_start, "beta_end": schedule.beta_end,
        "beta_schedule": KINDS.get(schedule.kind, "linear"), "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "prediction_type": PREDICTIONS[prediction],
    } | OURS | GRIDS.get(spacing, GRIDS["trailing"])  # fmt: skip
    return options if has_name(schedule) else options | {
        "trained_betas": _betas(schedule), "rescale_betas_zero_snr": False}  # fmt: skip


def has_name(schedule: ScheduleConfig) -> bool:
    """Whether diffusers has a name for it; others are told as their betas, from which they cannot be told again."""
    plain = schedule.snr_shift == 1 and (schedule.kind != "cosine" or schedule.cosine_s == ScheduleConfig.cosine_s)
    return plain and schedule.kind in KINDS


def _betas(config: ScheduleConfig) -> list[float]:
    alphas_cumprod = torch.sigmoid(Schedule(config).log_snr(torch.arange(config.timesteps, dtype=torch.float64)))
    before = torch.cat([torch.ones(1, dtype=torch.float64), alphas_cumprod[:-1]])
    return (1 - alphas_cumprod / before).tolist()
