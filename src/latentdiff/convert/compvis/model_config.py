"""The original release's configs (model.target, model.params) as our recipes; what ours cannot express is refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis.conditions import Task, task_of
from latentdiff.convert.compvis.options import Options
from latentdiff.convert.compvis.unet import unet_of
from latentdiff.data.folder import FolderConfig
from latentdiff.diffusion.schedule import ScheduleConfig
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training.settings import TrainConfig

SCHEDULES = {"linear": "scaled_linear", "sqrt_linear": "linear", "sqrt": "sqrt", "cosine": "cosine"}  # theirs -> ours
WHOLE = ("LatentDiffusion", "DDPM")
PIXELS = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())


class Original(NamedTuple):
    """A model of the original release, as our recipes say it."""

    first_stage: AutoencoderRecipe
    diffusion: DiffusionRecipe | None = None  # None: a first stage alone
    scale: float | None = 1.0  # of the latents; None: the checkpoint's scale_factor
    new_order: bool = False  # rows of qkv are ordered [3, heads, d], as ours
    names: tuple[str, ...] = ()  # of the released models, where it is recognised as one


def read_config(path: Path) -> Original:
    """A config.yaml of the original release."""
    try:
        import yaml
    except ImportError as error:
        raise UserError("--config needs PyYAML: pip install 'latentdiff[configs]'") from error
    try:
        config = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config {path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    return original_of(config)


def original_of(config: Any) -> Original:
    """A config as plain data; `model` is its part that counts."""
    root = Options(config, "the config")
    model = root.part("model") if "model" in root.values else root
    kind = model.target()
    return _stage_two(model, kind) if kind in WHOLE else Original(_stage_one(model, WHOLE))


# ---- stage one


def _stage_one(model: Options, others: tuple[str, ...] = ()) -> AutoencoderRecipe:
    known = (*FIRST_STAGES, *others)
    if model.target() not in FIRST_STAGES:
        raise UserError(f"{model.where}.target is {model.target()}; known are {', '.join(known)}")
    config, size = FIRST_STAGES[model.target()](model.part("params", {}))
    base = AutoencoderRecipe(autoencoder=config)
    return replace(base, data=FolderConfig(size=size), train=replace(base.train, ema_decay=0.0))


def _networks(params: Options) -> tuple[AutoencoderConfig, int]:
    """What KL and VQ models share, and the pictures' size."""
    dd, z_channels = params.part("ddconfig"), params.integer("embed_dim")
    dd.same("in_channels", 3).same("out_ch", 3).same("resamp_with_conv", True, True).same("tanh_out", False, False)
    dd.same("give_pre_end", False, False).same("use_linear_attn", False, False)
    attention = dd.get("attn_type", "vanilla")
    if attention not in ("vanilla", "none"):
        raise UserError(f"{dd.where}.attn_type is {attention!r}; it must be vanilla or none")
    mult, size = dd.integers("ch_mult", (1, 2, 4, 8)), dd.integer("resolution")
    wanted = dd.integers("attn_resolutions") if attention == "vanilla" else ()
    if any(size % 2**level for level in range(len(mult))) and wanted:
        raise UserError(f"{dd.where}.resolution is {size}, which {len(mult)} levels do not halve evenly")
    inner = dd.integer("z_channels")
    return AutoencoderConfig(
        channels=dd.integer("ch"),
        channel_mult=mult,
        num_res_blocks=dd.integer("num_res_blocks"),
        attention_levels=tuple(level for level in range(len(mult)) if size // 2**level in wanted),
        mid_attention=attention == "vanilla",
        z_channels=z_channels,
        inner_channels=0 if inner == z_channels else inner,
        dropout=dd.number("dropout", 0.0),
    ), size


def _kl(params: Options) -> tuple[AutoencoderConfig, int]:
    params.part("ddconfig").same("double_z", True, True)
    config, size = _networks(params)
    weight = params.part("lossconfig", {}).part("params", {}).number("kl_weight", 1.0)
    return replace(config, bottleneck=KLConfig(weight=weight)), size


def _vq(params: Options) -> tuple[AutoencoderConfig, int]:
    params.part("ddconfig").same("double_z", False, True)
    config, size = _networks(params)
    weight = params.part("lossconfig", {}).part("params", {}).number("codebook_weight", 1.0)
    return replace(config, bottleneck=VQConfig(params.integer("n_embed"), weight=weight, reset_after=0)), size


def _pixels(params: Options) -> tuple[AutoencoderConfig, int]:
    return PIXELS, 256


FIRST_STAGES = {
    "AutoencoderKL": _kl, "VQModel": _vq, "VQModelInterface": _vq, "IdentityFirstStage": _pixels, "Identity": _pixels,
}  # fmt: skip


# ---- stage two


def _stage_two(model: Options, kind: str) -> Original:
    params = model.part("params")
    first_stage = AutoencoderRecipe(autoencoder=PIXELS)
    if kind == "LatentDiffusion":
        first_stage = _stage_one(params.part("first_stage_config"))
    config = first_stage.autoencoder
    factor, given = 2 ** max(0, len(config.channel_mult) - 1), params.part("unet_config")
    task = task_of(params, kind, config.z_channels, factor)
    unet, new_order = unet_of(given, task, config.z_channels)
    size = _size(params, given, factor)
    recipe = DiffusionRecipe(
        data=FolderConfig(size=size[0], width=0 if size[0] == size[1] else size[1]),
        derived_fields=task.fields,
        conditions=task.conditions,
        unet=unet,
        schedule=_schedule(params),
        objective=ObjectiveConfig(
            prediction=params.choice("parameterization", ("eps", "x0"), "eps"),
            loss=params.choice("loss_type", ("l2", "l1"), "l2"),
        ),
        train=TrainConfig(grad_clip=0.0, ema_decay=0.9999 if params.get("use_ema", True) else 0.0),
        sampling=SamplingConfig(guidance_scale=4.0 if _can_hide(task) else 1.0),
    )
    scale = None if params.get("scale_by_std", False) else params.number("scale_factor", 1.0)
    return Original(first_stage, recipe, scale, new_order)


def _can_hide(task: Task) -> bool:
    return any(condition.dropout > 0 for condition in task.conditions)


def _schedule(params: Options) -> ScheduleConfig:
    params.same("given_betas", None, None)
    return ScheduleConfig(
        kind=SCHEDULES[params.choice("beta_schedule", tuple(SCHEDULES), "linear")],
        timesteps=params.integer("timesteps", 1000),
        beta_start=params.number("linear_start", 1e-4),
        beta_end=params.number("linear_end", 2e-2),
        cosine_s=params.number("cosine_s", 8e-3),
    )


def _size(params: Options, unet: Options, factor: int) -> tuple[int, int]:
    """Height and width of the pictures, from those of the latent."""
    given = params.get("image_size", unet.part("params").get("image_size", 32))
    sides = given if isinstance(given, (list, tuple)) else (given, given)
    return int(sides[0]) * factor, int(sides[-1]) * factor
