"""A run's folder: finding, creating, resuming and finishing it, and stopping training on a signal."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from latentdiff import config
from latentdiff.config import UserError
from latentdiff.training import checkpoint, files, image_grid
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.settings import CHANGEABLE_ON_RESUME


def runs_root() -> Path:
    """The folder of all runs: $LATENTDIFF_RUNS, or runs/."""
    return Path(os.environ.get("LATENTDIFF_RUNS", "runs"))


def find_run(name: str | Path) -> Path:
    """The folder of a run, given its path or its name under runs_root()."""
    for path in (Path(name), runs_root() / name):
        if (path / "recipe.json").is_file():
            return path
    names = sorted(p.parent.name for p in runs_root().glob("*/recipe.json"))
    raise UserError(f"no run at {name} nor {runs_root() / name}; runs there: {', '.join(names) or 'none'}")


def open_run(recipe: Any, world: World) -> tuple[Path, Path | None]:
    """The run's folder and, if the run exists, its newest checkpoint. Nothing is written.

    Raises UserError if the run exists with a recipe that differs in a field not in CHANGEABLE_ON_RESUME.
    """
    folder = runs_root() / recipe.name
    if (folder / "recipe.json").is_file():
        for field, old, new in config.differences(read_recipe(folder, type(recipe)), recipe):
            if not field.startswith(CHANGEABLE_ON_RESUME):
                raise UserError(
                    f"run {folder} was started with {field}={old!r}, not {new!r}; use another name (name=...) for a "
                    f"new run, or resume this one with the old value"
                )
    newest = next(reversed(checkpoint.list_checkpoints(folder / "checkpoints")), None)
    step = step_of(newest)
    if step > recipe.train.steps:
        raise UserError(f"train.steps is {recipe.train.steps}, but run {folder} has already done {step:,} steps")
    if world.all_reduce_max(step) != -world.all_reduce_max(-step):
        raise UserError(
            f"the processes see different checkpoints in {folder}, probably because of a network file system; wait a "
            f"minute and start again"
        )
    return folder, newest


def step_of(path: Path | None) -> int:
    """The step of a checkpoint; 0 for None."""
    return int(path.name.removeprefix("step_")) if path else 0


def create_run_dir(folder: Path, recipe: Any, world: World, write_files: Callable[[], None] = lambda: None) -> None:
    """Create the run's folder with recipe.json, after all checks have passed; `write_files` adds further files."""
    world.barrier()  # no process still reads the old content
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            files.write_json(folder / "recipe.json", config.to_dict(recipe))
            write_files()
        except OSError as error:
            raise UserError(f"cannot write the run's folder {folder}: {error.strerror}") from error
    world.barrier()


def finish_run(log: Log, weights: dict[str, Tensor], metadata: dict[str, str], curve_names: tuple[str, ...]) -> None:
    """Write model.safetensors with the EMA weights and curve.png with the curves of these metrics; close the log."""
    if log.world.is_main:
        checkpoint.write_tensors(log.folder / "model.safetensors", weights, metadata)
        image_grid.plot_curves(log.folder / "metrics.jsonl", log.folder / "curve.png", curve_names)
    log.close()


def read_recipe(folder: Path, *roots: type) -> Any:
    """The resolved recipe of a run, which must be one of the root classes."""
    try:
        data = json.loads((folder / "recipe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'recipe.json'} cannot be read: {error}") from error
    by_name = {root.__name__: root for root in roots}
    if not isinstance(data, dict) or data.get("type") not in by_name:
        kind = data.get("type") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"the type of run {folder} is {kind}; it must be {' or '.join(by_name)}")
    root = by_name[data["type"]]
    return config.checked(config.from_dict(data, root), root, "")


class StopSignal:
    """`with StopSignal() as stop:` Ctrl-C, SIGTERM and SIGUSR1 only set `signum`; a second Ctrl-C interrupts."""

    def __init__(self) -> None:
        self.signum = 0  # 0: none yet

    def __enter__(self) -> "StopSignal":
        self.old_handlers = {n: signal.signal(n, self._handle) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        for signum, handler in self.old_handlers.items():
            signal.signal(signum, handler)
        if kind is None and self.signum:  # it came too late for the loop: the old handler gets it
            os.kill(os.getpid(), self.signum)

    def requested(self, world: World) -> int:
        """The signal that any rank received, or 0; the same on every rank."""
        return world.all_reduce_max(self.signum)

    def exit(self, log: Log, step: int, signum: int) -> None:
        """Exit with the code of the signal, 128 + signum; call it after the checkpoint of `step`."""
        log.world.barrier()  # torchrun kills all ranks when one exits: rank 0 must have written the checkpoint
        log.info(f"stopped by {signal.Signals(signum).name} after step {step}; run the same command again to resume")
        log.close()
        raise SystemExit(128 + signum)

    def _handle(self, signum: int, frame: Any) -> None:
        self.signum = signum
        signal.signal(signal.SIGINT, signal.default_int_handler)
