"""A run's folder: where it is, whether it is new or goes on, and how it is left."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from latentdiff import config
from latentdiff.config import UserError
from latentdiff.training import checkpoint, image_grid
from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.settings import FREE_ON_RESUME


def runs_root() -> Path:
    return Path(os.environ.get("LATENTDIFF_RUNS", "runs"))


def find_run(name: str | Path) -> Path:
    """A run's folder, given as a folder or as a name under the root."""
    for path in (Path(name), runs_root() / name):
        if (path / "recipe.json").is_file():
            return path
    known = sorted(p.parent.name for p in runs_root().glob("*/recipe.json"))
    raise UserError(f"no run at {name} nor {runs_root() / name}; runs there: {', '.join(known) or 'none'}")


def open_run(recipe: Any, world: World) -> tuple[Path, Path | None]:
    """The run's folder and, where it exists already, its newest checkpoint; nothing is written.

    A resumed run must be the same run: a recipe that differs in more than FREE_ON_RESUME is refused by field.
    """
    folder = runs_root() / recipe.name
    if (folder / "recipe.json").is_file():
        old = read_recipe(folder, type(recipe))
        for field, before, now in config.differences(old, recipe):
            if not field.startswith(FREE_ON_RESUME):
                raise UserError(
                    f"run {folder} was started with {field}={before!r}, not {now!r}; give the new run a name of "
                    f"its own (name=...), or go on with the old value"
                )
    newest = next(reversed(checkpoint.list_checkpoints(folder / "checkpoints")), None)
    step = int(newest.name.removeprefix("step_")) if newest else 0
    if step > recipe.train.steps:
        raise UserError(f"train.steps is {recipe.train.steps}, but run {folder} has made {step:,} already")
    if world.agree(step) != -world.agree(-step):
        raise UserError(f"the ranks see different checkpoints in {folder}: its file system lags; wait a minute")
    return folder, newest


def begin(folder: Path, recipe: Any, world: World, parts: Callable[[], None] = lambda: None) -> None:
    """Make the run's folder, once all that may refuse the run has been asked; `parts` writes what belongs to it."""
    world.barrier()  # every rank has read what is there before it changes
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint.write_json(folder / "recipe.json", config.to_dict(recipe))
            parts()
        except OSError as error:
            raise UserError(f"cannot write the run's folder {folder}: {error.strerror}") from error
    world.barrier()


def finish(log: Log, weights: dict[str, Tensor], about: dict[str, str], names: tuple[str, ...]) -> None:
    """Leave the averaged weights, which are what is used, and the curve of what `names` name."""
    if log.world.is_main:
        checkpoint.write_tensors(log.folder / "model.safetensors", weights, about)
        image_grid.curve(log.folder / "metrics.jsonl", log.folder / "curve.png", names)
    log.close()


def read_recipe(folder: Path, *roots: type) -> Any:
    """The resolved recipe of a run, as one of the root classes."""
    try:
        data = json.loads((folder / "recipe.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'recipe.json'} cannot be read: {error}") from error
    by_name = {root.__name__: root for root in roots}
    if not isinstance(data, dict) or data.get("type") not in by_name:
        kind = data.get("type") if isinstance(data, dict) else type(data).__name__
        raise UserError(f"run {folder} is of kind {kind}; this needs {' or '.join(by_name)}")
    root = by_name[data["type"]]
    return config.checked(config.from_dict(data, root), root, "")


class Stop:
    """`with Stop() as stop:` inside, Ctrl-C, SIGTERM and SIGUSR1 ask to save and leave; a second Ctrl-C is obeyed."""

    def __init__(self) -> None:
        self.asked = 0  # the signal's number

    def __enter__(self) -> "Stop":
        self.before = {n: signal.signal(n, self._ask) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        if kind is None and self.asked:  # too late for the loop, not for what comes after it
            os.kill(os.getpid(), self.asked)

    def wanted(self, world: World) -> int:
        """The signal that any rank was given, 0 for none; every rank gets the same answer."""
        return world.agree(self.asked)

    def leave(self, log: Log, done: int, number: int) -> None:
        """End the process, after `done` steps and a checkpoint, as the signal would have: code 128 + number."""
        name = signal.Signals(number).name
        log.world.barrier()  # a rank that leaves first has its launcher end the one that still writes the checkpoint
        log.say(f"stopped by {name} after step {done}; start again with the same command to go on")
        log.close()
        raise SystemExit(128 + number)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
