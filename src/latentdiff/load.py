"""Trained weights: the frozen autoencoder, a finished run, the initial weights of the next run."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.build import build_autoencoder, build_classifier, build_diffusion
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data.tokenizer import CaptionTokenizer, load_tokenizer
from latentdiff.diffusion.classifier import Classifier
from latentdiff.diffusion.distillation import Teacher
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World

Info = Callable[[str], None]  # prints a line of the log


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights of a run: of the finished model, or the EMA weights of its newest checkpoint."""
    if (folder / "model.safetensors").is_file():
        return checkpoint.read_tensors(folder / "model.safetensors")
    checkpoints = checkpoint.list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise UserError(f"run {folder} has no weights yet; train it until its first checkpoint")
    return checkpoint.read_tensors(checkpoints[-1] / "ema.safetensors")


def load_autoencoder(folder: Path) -> Autoencoder:
    """The autoencoder of a stage-one run."""
    recipe = run_dir.read_recipe(folder, AutoencoderRecipe)
    with torch.device("meta"):  # without initial weights, which would be overwritten
        autoencoder = Autoencoder(recipe.autoencoder)
    _assign(autoencoder, weights_of(folder), folder)
    return autoencoder.eval()


def load_diffusion(folder: Path, weights: Path | None = None) -> tuple[LatentDiffusion, Autoencoder, DiffusionRecipe]:
    """The diffusion model of a run, its autoencoder and its recipe, on the CPU; weights: another file of weights."""
    recipe = run_dir.read_recipe(folder, DiffusionRecipe)
    text = next((c for c in recipe.conditions if isinstance(c, TextConfig)), None)
    tokenizer = CaptionTokenizer(load_tokenizer(folder / "tokenizer.json"), text.max_length) if text else None
    autoencoder = load_autoencoder(folder / "autoencoder")
    with torch.device("meta"):
        model = build_diffusion(recipe, autoencoder, tokenizer)
    _assign(model, weights_of(folder) if weights is None else checkpoint.read_tensors(weights), folder)
    return model.eval().requires_grad_(False), autoencoder, recipe


def load_weak_model(path: str | Path, device: str | torch.device = "cpu") -> LatentDiffusion:
    """The weaker model of autoguidance: a run, or an earlier checkpoint (runs/NAME/checkpoints/step_00001000)."""
    weights = Path(path) / "ema.safetensors"
    folder = Path(path).parent.parent if weights.is_file() else run_dir.find_run(path)
    model, _, _ = load_diffusion(folder, weights if weights.is_file() else None)
    return model.to(device)


def load_classifier(path: str | Path, model: LatentDiffusion, autoencoder: Autoencoder) -> Classifier:
    """The classifier that guides `model`; it must have been trained on the same latents and noise schedule."""
    folder = run_dir.find_run(path)
    recipe = run_dir.read_recipe(folder, ClassifierRecipe)
    own = load_autoencoder(folder / "autoencoder")
    device = next(model.parameters()).device
    hashes = {(a.weights_hash(), *a.latent_shift.flatten().tolist(), *a.latent_scale.flatten().tolist())
              for a in (own, autoencoder)}  # fmt: skip
    if len(hashes) > 1:
        raise UserError(f"classifier {folder} was trained on the latents of another autoencoder than the sampled run")
    if recipe.schedule != model.schedule.config:
        raise UserError(
            f"classifier {folder} was trained with schedule {recipe.schedule}, the sampled run with "
            f"{model.schedule.config}; they must be the same"
        )
    classifier = build_classifier(recipe, own)
    classifier.load_state_dict(weights_of(folder))
    return classifier.eval().requires_grad_(False).to(device)


def class_names(folder: Path) -> dict[str, list[str]]:
    """Names of the classes that a run was trained on: "label" and "boxes", if its data has names."""
    path = folder / "classes.json"
    return json.loads(path.read_text()) if path.is_file() else {}


# ---- for a training that starts


def open_autoencoder(
    recipe: DiffusionRecipe | ClassifierRecipe, folder: Path, world: World, info: Info
) -> tuple[Autoencoder, AutoencoderRecipe]:
    """The frozen autoencoder of a run and its recipe: the run's own copy, or that of recipe.autoencoder.path."""
    own, source = folder / "autoencoder", recipe.autoencoder.path
    init = getattr(recipe, "init", "")
    if not source and init:  # the autoencoder that the other run was trained with
        source = str(init_run(recipe) / "autoencoder")
    if (own / "model.safetensors").exists():
        first_stage, autoencoder = run_dir.read_recipe(own, AutoencoderRecipe), load_autoencoder(own)
    elif not source:
        raise UserError("autoencoder is empty; set it to a stage-one run (autoencoder=runs/NAME) or a recipe (.py)")
    elif source.endswith(".py"):
        first_stage = config.read_recipe(source, AutoencoderRecipe)
        autoencoder, seed = build_autoencoder(first_stage), first_stage.train.seed
        if first_stage.autoencoder.channel_mult:  # in pixel space there is nothing to train
            info(
                f"WARNING: {source} is a recipe, not a run: the autoencoder is UNTRAINED, initialized from seed {seed}"
            )
    else:
        path = run_dir.find_run(source)
        first_stage, autoencoder = run_dir.read_recipe(path, AutoencoderRecipe), load_autoencoder(path)
    return world.to_device(autoencoder).eval().requires_grad_(False), first_stage


def init_run(recipe: AutoencoderRecipe | DiffusionRecipe) -> Path:
    """The folder of the run named by `init`, which must be of the same stage."""
    folder = run_dir.find_run(recipe.init)
    run_dir.read_recipe(folder, type(recipe))
    return folder


def attach_teacher(recipe: DiffusionRecipe, model: LatentDiffusion, device: torch.device) -> None:
    """With `distill` in the recipe: attach the run named by init as the teacher."""
    if recipe.distill is None:
        return
    if not recipe.init or recipe.align is not None:
        raise UserError("distill needs init=RUN, the teacher, and cannot be combined with align")
    teacher, _, _ = load_diffusion(init_run(recipe))
    if teacher.schedule.config != model.schedule.config:
        raise UserError(f"the run init={recipe.init} has another schedule; a student must have that of its teacher")
    model.teacher = Teacher(teacher.to(device), recipe.distill)


def initialize_from(
    recipe: AutoencoderRecipe | DiffusionRecipe, module: Autoencoder | LatentDiffusion, info: Info
) -> None:
    """init=RUN: load the EMA weights of another run, trained or converted; with init_partial those that fit."""
    if not recipe.init:
        return
    folder = init_run(recipe)
    src, dst = (
        {name: x for name, x in tensors.items() if not name.startswith("learned_weighting.")}
        for tensors in (weights_of(folder), module.state_dict())
    )
    fitting = {name: x for name, x in src.items() if name in dst and x.shape == dst[name].shape}
    shape = lambda tensors, name: str([*tensors[name].shape]) if name in tensors else "none"  # noqa: E731
    others = [f"{name} ({shape(src, name)} in the run, {shape(dst, name)} in the model)"
              for name in sorted(dst.keys() | src.keys()) if name not in fitting]  # fmt: skip
    if others and not recipe.init_partial:
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise UserError(
            f"init={recipe.init}: {len(others)} tensors do not fit: {', '.join(others[:8])}{more}; init_partial=true "
            f"loads the {len(fitting)} that fit and initializes the rest randomly"
        )
    module.load_state_dict(fitting, strict=False)
    info(f"initialized from the EMA weights of {folder}: {len(fitting)} of {len(dst)} tensors")
    for other in others:
        info(f"  randomly initialized: {other}")


def _assign(module: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    tensors = {name: upcast(value) for name, value in tensors.items()}  # weights are float32, in whichever type stored
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise UserError(
            f"the weights of {folder} do not fit its recipe: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected ({', '.join(unexpected[:3])})"
        )
