"""Which options of sample.py a run requires: those of its conditions."""

import os
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from latentdiff.conditioning.condition import ConditionConfig, option_name
from latentdiff.config import UserError
from latentdiff.recipe import Condition, DiffusionRecipe
from latentdiff.training import run_dir

Conditions = Collection[ConditionConfig]
INPAINTING = {"image", "mask"}  # any other run accepts them too: known pixels are blended in while it samples


def all_inputs() -> list[str]:
    """The options of all conditions."""
    return list({name: None for condition in get_args(Condition) for name in condition().inputs()})


def required(conditions: Conditions) -> dict[str, str]:
    """Option -> what it takes, for all options that the conditions require."""
    return {name: meaning for condition in conditions for name, meaning in condition.inputs().items()}


def accepts(conditions: Conditions, options: Collection[str]) -> bool:
    """Whether a run samples from exactly these options."""
    difference = set(options) ^ set(required(conditions))
    return not difference or difference == INPAINTING and set(options) >= INPAINTING


def check(run: Path, conditions: Conditions, options: Collection[str]) -> None:
    """Refuse (UserError) missing and superfluous options by name."""
    options, needed = set(options), required(conditions)
    missing = [f"{option_name(name)} ({meaning})" for name, meaning in needed.items() if name not in options]
    if missing:
        raise UserError(f"run {run} requires {', '.join(map(option_name, needed))}; add {' and '.join(missing)}")
    extra = options - set(needed) - INPAINTING
    if extra:
        takes = f"it takes {', '.join(map(option_name, needed))}" if needed else "it is unconditional"
        raise UserError(f"run {run} does not take {', '.join(map(option_name, sorted(extra)))}; {takes}")
    if len(options & INPAINTING) == 1:
        raise UserError("--image and --mask go together: the image, and a mask that is white where to inpaint")


def describe_run(name: str) -> str:
    """What --help prints about one run; empty if there is no such diffusion run."""
    for folder in (Path(name), Path(os.environ.get("LATENTDIFF_RUNS", "runs")) / name):
        if (folder / "recipe.json").is_file():
            try:
                needed = required(run_dir.read_recipe(folder, DiffusionRecipe).conditions)
            except UserError:
                return ""
            lines = [f"  {option_name(option)}".ljust(25) + meaning for option, meaning in needed.items()]
            return "\n".join([f"run {folder} " + ("requires:" if needed else "is unconditional"), *lines])
    return ""


def newest_run(options: set[str]) -> Path:
    """The newest finished run that accepts these options; a run trained to inpaint before one that is not."""
    runs = sorted(run_dir.runs_root().glob("*/model.safetensors"), key=lambda p: -p.stat().st_mtime)
    fitting = []
    for folder in (path.parent for path in runs):
        try:
            conditions = run_dir.read_recipe(folder, DiffusionRecipe).conditions
        except UserError:  # a stage-one run, a classifier, or no run of ours
            continue
        if accepts(conditions, options):
            fitting.append((set(required(conditions)) != options, folder))
    if not fitting:
        names = " and ".join(map(option_name, sorted(options))) or "no input"
        raise UserError(
            f"no finished diffusion run in {run_dir.runs_root()} takes {names}; train one, or name one with --run"
        )
    return min(fitting, key=lambda pair: pair[0])[1]
