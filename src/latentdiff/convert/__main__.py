"""Weights of other projects, in and out.

python -m latentdiff.convert compvis CHECKPOINT --output RUN [--config YAML] [--vocab vocab.txt]
python -m latentdiff.convert compvis-export RUN FILE.safetensors
python -m latentdiff.convert diffusers-import FOLDER --output RUN [--autoencoder RUN] [--vocab vocab.txt]
python -m latentdiff.convert diffusers-export RUN FOLDER
python -m latentdiff.convert info PATH

compvis           a checkpoint of the original release (.ckpt or .safetensors, whole or its first stage alone) -> a run
compvis-export    a run -> one file in the original's layout
diffusers-import  a model or a pipeline as diffusers saves it -> a run (--autoencoder: for a U-Net that comes alone)
diffusers-export  a run -> a folder that diffusers loads, as one of its pipelines where there is one for it
info              what a file or a folder is
"""

import importlib
import inspect
from collections.abc import Callable

from latentdiff import cli
from latentdiff.config import UserError
from latentdiff.cli import ArgumentParser

cli.answer_help(__doc__)

COMMANDS = {  # each is a function of this package: its parameters are the command's words, keywords are --options
    "compvis": "compvis.import_.import_checkpoint",
    "compvis-export": "compvis.export.export_run",
    "diffusers-import": "diffusers.import_.import_folder",
    "diffusers-export": "diffusers.export.export_run",
    "info": "info.show",
}


def main(words: list[str]) -> None:
    if not words or words[0] not in COMMANDS:
        raise UserError(f"convert needs one of {', '.join(COMMANDS)}; --help says what they do")
    module, _, name = COMMANDS[words[0]].rpartition(".")
    command = getattr(importlib.import_module(f"latentdiff.convert.{module}"), name)
    command(**arguments(command, words))


def arguments(command: Callable, words: list[str]) -> dict[str, str]:
    """The command's name and its words -> what its function is called with; UserError where they do not fit."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for parameter in inspect.signature(command).parameters.values():
        name = parameter.name.replace("_", "-")
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            parser.add_argument(f"--{name}", dest=parameter.name, required=required, default=parameter.default)
        else:
            parser.add_argument(parameter.name, metavar=name.upper())
    return vars(parser.parse_args(words[1:]))


if __name__ == "__main__":
    cli.run(main)
