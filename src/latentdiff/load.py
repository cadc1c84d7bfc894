"""Weights that were trained before: a frozen first stage, a finished run, a start for the next one."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from latentdiff import config
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.autoencoder.bottleneck import upcast
from latentdiff.build import build_autoencoder, build_diffusion, init_run, scale_of
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.data.tokenizer import CaptionTokenizer, load_tokenizer
from latentdiff.diffusion.teacher import Teacher
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe, size_of
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World


def open_autoencoder(recipe: DiffusionRecipe, folder: Path, world: World, say) -> tuple[Autoencoder, AutoencoderRecipe]:
    """The frozen autoencoder of a diffusion run and its recipe: the run's own copy, or from where the recipe says."""
    own, source = folder / "autoencoder", recipe.autoencoder.path
    if not source and recipe.init:  # the one that the other run was trained on
        source = str(init_run(recipe) / "autoencoder")
    if (own / "model.safetensors").exists():
        first_stage, autoencoder = run_dir.read_recipe(own, AutoencoderRecipe), load_autoencoder(own)
    elif not source:
        raise UserError(
            "autoencoder is empty; name a stage-one run (autoencoder=runs/NAME) or an autoencoder recipe (.py)"
        )
    elif source.endswith(".py"):
        first_stage = config.read_recipe(source, AutoencoderRecipe)
        autoencoder, seed = build_autoencoder(first_stage), first_stage.train.seed
        if first_stage.autoencoder.channel_mult:  # pixel space has nothing to train
            say(f"WARNING: {source} is a recipe, not a run: the autoencoder is UNTRAINED, initialised from seed {seed}")
    else:
        path = run_dir.find_run(source)
        first_stage, autoencoder = run_dir.read_recipe(path, AutoencoderRecipe), load_autoencoder(path)
    return world.place(autoencoder).eval().requires_grad_(False), first_stage


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The weights to use of a run: the finished model's, or the EMA's of its newest checkpoint."""
    if (folder / "model.safetensors").is_file():
        return checkpoint.read_tensors(folder / "model.safetensors")
    checkpoints = checkpoint.list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise UserError(f"run {folder} has no weights yet; train it until its first checkpoint")
    return checkpoint.read_tensors(checkpoints[-1] / "ema.safetensors")


def load_autoencoder(folder: Path) -> Autoencoder:
    """A stage-one run's autoencoder."""
    recipe = run_dir.read_recipe(folder, AutoencoderRecipe)
    with torch.device("meta"):  # no weight is made up to be thrown away
        autoencoder = Autoencoder(recipe.autoencoder)
    _load(autoencoder, weights_of(folder), folder)
    return autoencoder.eval()


def load_run(path: str | Path, device: str | torch.device = "cpu") -> LatentDiffusion | Autoencoder:
    """A trained run as a model: a LatentDiffusion with its autoencoder and tokenizer, or an Autoencoder."""
    folder = run_dir.find_run(path)
    recipe = run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe)
    if isinstance(recipe, AutoencoderRecipe):
        return load_autoencoder(folder).to(device)
    text = next((c for c in recipe.conditions if isinstance(c, TextConfig)), None)
    tokenizer = CaptionTokenizer(load_tokenizer(folder / "tokenizer.json"), text.max_length) if text else None
    autoencoder = load_autoencoder(folder / "autoencoder")
    with torch.device("meta"):
        model = build_diffusion(recipe, autoencoder, tokenizer)
    _load(model, weights_of(folder), folder)
    model.autoencoder, model.tokenizer = autoencoder, tokenizer
    model.size, model.scale = size_of(recipe), scale_of(recipe)
    return model.eval().requires_grad_(False).to(device)


def load_guide(path: str | Path, device: str | torch.device = "cpu") -> LatentDiffusion:
    """A worse model for autoguidance: a run, or an earlier checkpoint of one (runs/NAME/checkpoints/step_00001000)."""
    average = Path(path) / "ema.safetensors"
    model = load_run(Path(path).parent.parent if average.is_file() else path, device)
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"run {path} is a stage-one run; autoguidance needs a diffusion run")
    if average.is_file():
        autoencoder, model.autoencoder = model.autoencoder, None  # a checkpoint holds what trains
        _load(model, checkpoint.read_tensors(average), average)
        model.autoencoder = autoencoder
    return model.requires_grad_(False).to(device)


def attach_teacher(recipe: DiffusionRecipe, model: LatentDiffusion, device: torch.device) -> None:
    """Where the recipe has `distill`: the run named by init, for the loss to ask."""
    if recipe.distill is None:
        return
    if not recipe.init or recipe.align is not None:
        raise UserError("distill needs init=RUN, the run to learn from, and does not go with align")
    teacher = load_run(init_run(recipe), device)
    if teacher.schedule.config != model.schedule.config:
        raise UserError(f"the run init={recipe.init} has another schedule; a student must have its teacher's")
    model.teacher = Teacher(teacher, recipe.distill)


def names_of(folder: Path) -> dict[str, list[str]]:
    """The names of the classes that a run was trained on: "label" and "boxes", where its data said any."""
    path = folder / "classes.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def start_from(
    recipe: AutoencoderRecipe | DiffusionRecipe, module: Autoencoder | LatentDiffusion, say: Callable[[str], None]
) -> None:
    """init=RUN: the averaged weights of another run, native or converted, as far as they fit (init_partial) or all."""
    if not recipe.init:
        return
    folder = init_run(recipe)
    theirs, ours = (  # but for what a run learns of its own losses
        {name: x for name, x in tensors.items() if not name.startswith("uncertainty.")}
        for tensors in (weights_of(folder), module.state_dict())
    )
    fitting = {name: x for name, x in theirs.items() if name in ours and x.shape == ours[name].shape}
    shape = lambda tensors, name: str([*tensors[name].shape]) if name in tensors else "none"  # noqa: E731
    others = [f"{name} ({shape(theirs, name)} there, {shape(ours, name)} here)"
              for name in sorted(ours.keys() | theirs.keys()) if name not in fitting]  # fmt: skip
    if others and not recipe.init_partial:
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        raise UserError(
            f"init={recipe.init}: {len(others)} tensors do not fit: {', '.join(others[:8])}{more}; init_partial=true "
            f"takes the {len(fitting)} that do and starts the rest from noise"
        )
    module.load_state_dict(fitting, strict=False)
    say(f"starts from the averaged weights of {folder}: {len(fitting)} of {len(ours)} tensors")
    for other in others:
        say(f"  from noise: {other}")


def _load(module: torch.nn.Module, tensors: dict[str, torch.Tensor], folder: Path) -> None:
    tensors = {name: upcast(value) for name, value in tensors.items()}  # weights compute in float32, whatever is stored
    missing, unexpected = module.load_state_dict(tensors, strict=False, assign=True)
    if missing or unexpected:
        raise UserError(
            f"the weights of {folder} do not fit its recipe: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} unexpected ({', '.join(unexpected[:3])})"
        )
