"""How the scripts are called and how they end. Imports no torch, so that --help answers at once."""

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentdiff import config
from latentdiff.config import UserError
from latentdiff.sampling import requirements

LESS_MEMORY = (
    "Training needs less with a larger train.grad_accum_steps (the same batch in more pieces), a smaller train.batch_size "
    "or unet.gradient_checkpointing=true; sample.py and evaluate.py with a smaller --batch-size, sample.py also with --tile "
    "and, with least, --coding blended or spilled"
)


def answer_help(doc: str, more: Callable[[list[str]], str] = lambda words: "") -> None:
    """--help without a recipe: print how the script is called, before anything slow is imported, and `more`."""
    words = sys.argv[1:]
    if {"-h", "--help"} & set(words) and not any(word.endswith(".py") for word in words):
        print(doc.strip() + more(words))
        sys.exit(0)


def training_recipe(words: list[str], root: type, default: str) -> tuple[Any, str | None]:
    """[RECIPE.py] [a.b=c ...] [--overfit N] [--report-to NAME] -> the resolved recipe and where to report."""
    words = list(words)
    overfit, report_to = _take(words, "--overfit"), _take(words, "--report-to")
    show = bool({"-h", "--help"} & set(words))
    words = [word for word in words if word not in ("-h", "--help")]
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}; there are --overfit N, --report-to NAME and --help")
    named = [i for i, word in enumerate(words) if word.endswith(".py") and "=" not in word]
    path = words.pop(named[0]) if named else default
    recipe = config.override(config.read_recipe(path, root), words).named(Path(path).stem)  # name= alone: its default
    if overfit is not None:
        if not overfit.isdigit() or int(overfit) < 1:
            raise UserError(f"--overfit {overfit}: it takes the number of items to train on, at least 1")
        train = replace(recipe.train, overfit=int(overfit))
        recipe = replace(recipe, train=train, name=f"{recipe.name}-overfit{overfit}")
    if report_to not in (None, "tensorboard", "wandb"):
        raise UserError(f"--report-to {report_to}: it must be tensorboard or wandb")
    if report_to and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report-to {report_to} needs the package {report_to}: pip install 'latentdiff[{report_to}]'")
    if show:
        print("\n".join(config.describe(recipe)))
        sys.exit(0)
    return recipe, report_to


def _take(words: list[str], option: str) -> str | None:
    """Remove `--option value` or `--option=value` from the words; return the value."""
    for i, word in enumerate(words):
        if word == option:
            if i + 1 == len(words):
                raise UserError(f"{option} needs a value")
            del words[i]
            return words.pop(i)
        if word.startswith(option + "="):
            return words.pop(i).partition("=")[2]
    return None


def run(main: Callable[[list[str]], None]) -> None:
    """Call main with the command line's words; a UserError, or a disk that refuses, ends as one line and exit code 2.

    Ranks that fail alike say it once, on rank 0; one that fails alone says so with its number. A signal ends with
    128 + its number, the loss of another rank with 1.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # Slurm announces the end of a job by the last
        signal.signal(number, _leave)
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        _fail(error)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported for --help
            _fail(UserError(f"{str(error).partition('. GPU')[0]}. {LESS_MEMORY}"))
        _mourn(error)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    if "RANK" in os.environ:
        from latentdiff.training import distributed

        distributed.end()


def _leave(number: int, frame: Any) -> None:
    """A signal while nothing is to be saved."""
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _fail(error: Exception) -> None:
    text, rank = " ".join(str(error).split()), os.environ.get("RANK", "0")
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'writing'}: {error.strerror}; what was finished before is kept"
    if "RANK" in os.environ:
        from latentdiff.training import distributed

        if distributed.said(text, int(rank), int(os.environ.get("LOCAL_RANK", rank))):
            sys.exit(2)
    print(f"error: {'' if rank == '0' else f'rank {rank}: '}{text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _mourn(error: Exception) -> None:
    """If the error is that another rank is gone, say which, once, and leave."""
    if "RANK" not in os.environ:
        return
    from latentdiff.training import distributed

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends those that are left, and would cut the sentence short
    text = distributed.lost(error)
    if text:
        print(f"error: {text}; start again to go on from the last checkpoint", file=sys.stderr, flush=True)
    if text is not None:
        sys.exit(1)


# ---- a run that is named


def about_run(words: list[str]) -> str:
    """What --help adds where --run names one: what that run draws from."""
    name = _take(list(words), "--run")
    for folder in (Path(name or ""), Path(os.environ.get("LATENTDIFF_RUNS", "runs")) / (name or "")):
        if name and (folder / "recipe.json").is_file():
            recipe = read_json(folder / "recipe.json")
            if recipe["type"] == "DiffusionRecipe":
                return "\n\n" + requirements.describe(folder, recipe)
    return ""


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
