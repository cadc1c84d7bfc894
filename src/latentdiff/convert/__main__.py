"""Convert weights from and to other projects.

python -m latentdiff.convert compvis CHECKPOINT --output RUN [--config YAML] [--vocab vocab.txt] [--weights ema|raw]
python -m latentdiff.convert compvis-export RUN FILE.safetensors
python -m latentdiff.convert diffusers-import FOLDER --output RUN [--autoencoder RUN] [--vocab vocab.txt]
python -m latentdiff.convert diffusers-export RUN FOLDER
python -m latentdiff.convert info PATH

compvis           a checkpoint of the original release (.ckpt or .safetensors; whole or its first stage) -> run
compvis-export    run -> one file in the original release's format
diffusers-import  a model or pipeline in the format of diffusers -> run; --autoencoder: for a U-Net without one
diffusers-export  run -> a folder that diffusers loads, as one of its pipelines if possible
info              print what a file or folder contains
"""

import importlib
import inspect
from collections.abc import Callable

from latentdiff import cli
from latentdiff.config import UserError

cli.answer_help(__doc__)

COMMANDS = {  # functions of this package; their parameters are the arguments, keyword-only parameters the --options
    "compvis": "compvis.import_checkpoint.import_checkpoint",
    "compvis-export": "compvis.export_run.export_run",
    "diffusers-import": "diffusers.import_folder.import_folder",
    "diffusers-export": "diffusers.export_run.export_run",
    "info": "info.print_info",
}


def main(argv: list[str]) -> None:
    if not argv or argv[0] not in COMMANDS:
        raise UserError(f"the first argument must be one of {', '.join(COMMANDS)}; --help describes them")
    module, _, name = COMMANDS[argv[0]].rpartition(".")
    command = getattr(importlib.import_module(f"latentdiff.convert.{module}"), name)
    command(**parse_arguments(command, argv[1:]))


def parse_arguments(command: Callable, argv: list[str]) -> dict[str, str]:
    """The keyword arguments of a command's function."""
    parser = cli.ArgumentParser(add_help=False, allow_abbrev=False)
    for parameter in inspect.signature(command).parameters.values():
        name = parameter.name.replace("_", "-")
        if parameter.kind is parameter.KEYWORD_ONLY:
            required = parameter.default is parameter.empty
            parser.add_argument(f"--{name}", dest=parameter.name, required=required, default=parameter.default)
        else:
            parser.add_argument(parameter.name, metavar=name.upper())
    return vars(parser.parse_args(argv))


if __name__ == "__main__":
    cli.run(main)
