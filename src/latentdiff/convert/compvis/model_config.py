"""Whole models of the original release: config.yaml (model.target, model.params) <-> recipes."""

from pathlib import Path
from typing import Any, NamedTuple

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis.conditions import read_condition, unet_inputs, write_condition
from latentdiff.convert.compvis.config_section import ConfigSection, Field, refuse_export, write_fields
from latentdiff.convert.compvis.network_configs import read_first_stage, read_unet, write_first_stage, write_unet
from latentdiff.convert.converted_run import PIXEL_SPACE, factor_of
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.folder import FolderConfig
from latentdiff.data.masks import MasksConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training.settings import TrainConfig

DIFFUSION_MODELS = ("LatentDiffusion", "DDPM")
SCHEDULES = {  # beta_schedule -> ScheduleConfig.kind
    "linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine",
}  # fmt: skip
SCHEDULE_FIELDS = (
    Field("timesteps", "timesteps", int, 1000),
    Field("linear_start", "beta_start", float, 1e-4),
    Field("linear_end", "beta_end", float, 2e-2),
    Field("cosine_s", "cosine_s", float, 8e-3),
)
PREDICTIONS, LOSSES = ("eps", "x0"), ("l2", "l1")


class CompVisModel(NamedTuple):
    """A model of the original release, as recipes of latentdiff."""

    first_stage: AutoencoderRecipe
    diffusion: DiffusionRecipe | None = None  # None: a first stage alone
    scale: float | None = 1.0  # of the latents; None: scale_factor of the checkpoint
    new_attention_order: bool = False  # qkv is ordered [3, heads, d], as in latentdiff
    names: tuple[str, ...] = ()  # of the released models with these weights, if they were recognised


def read_yaml(path: Path) -> CompVisModel:
    """Read a config.yaml."""
    try:
        import yaml
    except ImportError as error:
        raise UserError("--config needs PyYAML: pip install 'latentdiff[configs]'") from error
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return read_model(config)


def read_model(config: Any) -> CompVisModel:
    """The content of a config.yaml, of which only `model` is used -> recipes."""
    root = ConfigSection(config, "config")
    model = root.section("model") if "model" in root.values else root
    if model.target() not in DIFFUSION_MODELS:
        return CompVisModel(read_first_stage(model, DIFFUSION_MODELS))
    params = model.section("params")
    first_stage = AutoencoderRecipe(autoencoder=PIXEL_SPACE)
    if model.target() == "LatentDiffusion":
        first_stage = read_first_stage(params.section("first_stage_config"))
    recipe, new_attention_order = _read_diffusion(params, model.target(), first_stage)
    scale = None if params.get("scale_by_std", False) else params.get("scale_factor", 1.0, float)
    return CompVisModel(first_stage, recipe, scale, new_attention_order)


def _read_diffusion(params: ConfigSection, target: str, first_stage: AutoencoderRecipe) -> tuple[DiffusionRecipe, bool]:
    factor, z_channels = factor_of(first_stage.autoencoder), first_stage.autoencoder.z_channels
    condition = read_condition(params, target, factor)
    unet_config, inputs = params.section("unet_config"), unet_inputs(condition, z_channels)
    unet, new_attention_order = read_unet(unet_config, inputs, z_channels)
    params.require("given_betas", None, None)
    kind = SCHEDULES[params.choice("beta_schedule", SCHEDULES, "linear")]
    prediction, loss = params.choice("parameterization", PREDICTIONS, "eps"), params.choice("loss_type", LOSSES, "l2")
    sides = params.get("image_size", unet_config.section("params").get("image_size", 32))
    height, width = (int(side) * factor for side in (sides if isinstance(sides, (list, tuple)) else (sides, sides)))
    derived_fields = {MaskedConfig: (MasksConfig(),), LowResConfig: (DegradeConfig(scale=factor),)}
    recipe = DiffusionRecipe(
        data=FolderConfig(size=height, width=0 if height == width else width),
        derived_fields=derived_fields.get(type(condition), ()),
        conditions=() if condition is None else (condition,),
        unet=unet,
        schedule=ScheduleConfig(kind, **params.fields(SCHEDULE_FIELDS)),
        objective=ObjectiveConfig(prediction, loss),
        train=TrainConfig(grad_clip=0.0, ema_decay=0.9999 if params.get("use_ema", True) else 0.0),
        sampling=SamplingConfig(guidance_scale=4.0 if getattr(condition, "dropout", 0) > 0 else 1.0),
    )
    return recipe, new_attention_order


def write_model(recipe: AutoencoderRecipe | DiffusionRecipe, first_stage: AutoencoderRecipe) -> dict[str, Any]:
    """The config of a run, without the scale of the latents."""
    size = max(first_stage.data.image_size)
    if isinstance(recipe, AutoencoderRecipe):
        return {"model": write_first_stage(recipe.autoencoder, size, frozen=False)}
    _check_export(recipe)
    condition, z_channels = next(iter(recipe.conditions), None), first_stage.autoencoder.z_channels
    factor = factor_of(first_stage.autoencoder)
    sides = [side // factor for side in recipe.data.image_size]
    params = write_condition(condition, factor) | write_fields(SCHEDULE_FIELDS, recipe.schedule)
    params |= {
        "parameterization": recipe.objective.prediction,
        "loss_type": recipe.objective.loss,
        "beta_schedule": next(src for src, dst in SCHEDULES.items() if dst == recipe.schedule.kind),
        "first_stage_key": "image",
        "image_size": sides[0] if sides[0] == sides[1] else sides,
        "channels": z_channels,
        "use_ema": recipe.train.ema_decay > 0,
        "first_stage_config": write_first_stage(first_stage.autoencoder, size, frozen=True),
    }
    inputs = unet_inputs(condition, z_channels)
    params["unet_config"] = write_unet(recipe.unet, inputs, z_channels, params["image_size"])
    target = "ldm.models.diffusion.ddpm.LatentDiffusion"
    return {"model": {"base_learning_rate": recipe.train.lr, "target": target, "params": params}}


def _check_export(recipe: DiffusionRecipe) -> None:
    schedule, objective = recipe.schedule, recipe.objective
    settings = {
        f"schedule.kind={schedule.kind}": schedule.kind not in SCHEDULES.values(),
        f"schedule.zero_terminal_snr={schedule.zero_terminal_snr}": schedule.zero_terminal_snr,
        f"schedule.snr_shift={schedule.snr_shift:g}": schedule.snr_shift != 1,
        f"objective.prediction={objective.prediction}": objective.prediction not in PREDICTIONS,
        f"objective.loss={objective.loss}": objective.loss not in LOSSES,
        "more than one condition": len(recipe.conditions) > 1,
    }
    for setting, is_refused in settings.items():
        if is_refused:
            refuse_export(setting)
