"""Run under torchrun by test_loop_ranks.py: a training script that also leaves the weights of every rank."""

import sys
from pathlib import Path

from conftest import script

from latentdiff import cli
from latentdiff.training import checkpoint
from latentdiff.training.ema import EMA
from latentdiff.training.world import World

stage = script(sys.argv.pop(1))
train = stage.train


def train_and_keep(*servants) -> None:
    train(*servants)
    (ema,), (world,), (folder,) = ([s for s in servants if isinstance(s, kind)] for kind in (EMA, World, Path))
    checkpoint.write_tensors(folder / f"model{world.rank}.safetensors", ema.source.state_dict())
    checkpoint.write_tensors(folder / f"ema{world.rank}.safetensors", ema.model.state_dict())


stage.train = train_and_keep
cli.run(stage.main)
