"""The options of evaluate.py. Imports no torch, so that --help answers at once."""

import argparse

from latentdiff.cli import ArgumentParser, hyphens
from latentdiff.config import UserError


def evaluate_arguments(argv: list[str]) -> argparse.Namespace:
    """The options of evaluate.py; sampling settings are None if the run's own are used."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("run", nargs="?")
    for option in ("--output", "--sampler", "--prompts-file", "--clip", "--reference", "--samples"):
        parser.add_argument(option)
    parser.add_argument("--features", default="auto")
    parser.add_argument("--split", choices=("val", "test", "train"), default="val")
    for option, default in (("--count", None), ("--steps", None), ("--prompts", 500), ("--batch-size", 50)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--report", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args([hyphens(argument) for argument in argv])
    for name, least in (("count", 2), ("steps", 1), ("prompts", 2), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.run is None and not (options.samples and options.reference):
        raise UserError("evaluate.py needs a run, or two folders of images: --samples DIR --reference DIR")
    return options
