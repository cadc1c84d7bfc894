"""How the scripts read their command line and how they end. Imports no torch, so that --help answers at once."""

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentdiff import config
from latentdiff.config import UserError

OUT_OF_MEMORY = (
    "To train with less memory, use gradient accumulation (a larger train.grad_accum_steps), a smaller "
    "train.batch_size or unet.gradient_checkpointing=true; for sample.py and evaluate.py a smaller --batch-size, for "
    "sample.py also --tile-size, with --tiling blended or offloaded for the least"
)


def answer_help(doc: str, extra: Callable[[list[str]], str] = lambda argv: "") -> None:
    """--help without a recipe: print the usage, before anything slow is imported, and exit."""
    argv = sys.argv[1:]
    if {"-h", "--help"} & set(argv) and not any(argument.endswith(".py") for argument in argv):
        print(doc.strip() + extra(argv))
        sys.exit(0)


def training_recipe(argv: list[str], root: type, default: str) -> tuple[Any, str | None]:
    """[RECIPE.py] [a.b=c ...] [--overfit N] [--report-to NAME] -> the resolved recipe, and where to report metrics."""
    argv = list(argv)
    overfit, report_to = option_value(argv, "--overfit"), option_value(argv, "--report-to")
    show_fields = bool({"-h", "--help"} & set(argv))
    argv = [argument for argument in argv if argument not in ("-h", "--help")]
    unknown = [argument for argument in argv if argument.startswith("-")]
    if unknown:
        raise UserError(f"unknown option {unknown[0]}; the options are --overfit N, --report-to NAME and --help")
    recipes = [i for i, argument in enumerate(argv) if argument.endswith(".py") and "=" not in argument]
    path = argv.pop(recipes[0]) if recipes else default
    recipe = config.override(config.read_recipe(path, root), argv).named(Path(path).stem)  # name= resets the name
    if overfit is not None:
        if not overfit.isdigit() or int(overfit) < 1:
            raise UserError(f"--overfit {overfit}: it must be the number of items to train on, at least 1")
        train = replace(recipe.train, overfit=int(overfit))
        recipe = replace(recipe, train=train, name=f"{recipe.name}-overfit{overfit}")
    if report_to not in (None, "tensorboard", "wandb"):
        raise UserError(f"--report-to {report_to}: it must be tensorboard or wandb")
    if report_to and importlib.util.find_spec(report_to) is None:
        raise UserError(f"--report-to {report_to} needs the package {report_to}: pip install 'latentdiff[{report_to}]'")
    if show_fields:
        print("\n".join(config.describe(recipe)))
        sys.exit(0)
    return recipe, report_to


def option_value(argv: list[str], option: str) -> str | None:
    """Remove `--option value` or `--option=value` from argv; return the value."""
    for i, argument in enumerate(argv):
        if argument == option:
            if i + 1 == len(argv):
                raise UserError(f"{option} needs a value")
            del argv[i]
            return argv.pop(i)
        if argument.startswith(option + "="):
            return argv.pop(i).partition("=")[2]
    return None


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are UserErrors."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def hyphens(argument: str) -> str:
    """--batch_size=4 -> --batch-size=4."""
    option, equals, value = argument.partition("=")
    return option.replace("_", "-") + equals + value if argument.startswith("--") else argument


# ---- how a script ends


def run(main: Callable[[list[str]], None]) -> None:
    """Call main(argv); a UserError, or an OSError such as a full disk, becomes one line and exit code 2.

    An error that all processes share is printed once, by rank 0; an error of a single rank is printed with its number.
    After a signal the exit code is 128 + its number, after the loss of another rank 1.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # Slurm sends SIGUSR1 before the end of a job
        signal.signal(number, _exit_on_signal)
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        _exit_with_error(error)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; it is not imported for --help
            _exit_with_error(UserError(f"{str(error).partition('. GPU')[0]}. {OUT_OF_MEMORY}"))
        _exit_if_rank_lost(error)
        raise
    except KeyboardInterrupt:
        sys.exit(130)
    if "RANK" in os.environ:
        from latentdiff.training import distributed

        distributed.destroy()


def _exit_on_signal(number: int, frame: Any) -> None:
    """A signal outside of the training loop: there is nothing to save."""
    if os.environ.get("RANK", "0") == "0":
        print(f"stopped by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def _exit_with_error(error: Exception) -> None:
    text, rank = " ".join(str(error).split()), os.environ.get("RANK", "0")
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'writing'}: {error.strerror}; files that were complete before are intact"
    if "RANK" in os.environ:
        from latentdiff.training import distributed

        if distributed.reported_by_rank0(text, int(rank), int(os.environ.get("LOCAL_RANK", rank))):
            sys.exit(2)
    print(f"error: {'' if rank == '0' else f'rank {rank}: '}{text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _exit_if_rank_lost(error: Exception) -> None:
    """If the error means that another rank is gone, print which one, once, and exit."""
    if "RANK" not in os.environ:
        return
    from latentdiff.training import distributed

    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun terminates the remaining ranks, before the message is out
    text = distributed.diagnose_lost_ranks(error)
    if text:
        print(f"error: {text}; start again to continue from the last checkpoint", file=sys.stderr, flush=True)
    if text is not None:
        sys.exit(1)
