"""Run under torchrun by test_loop_ranks.py: a training script that also leaves the weights of every rank."""

import sys

from conftest import script

from latentdiff import cli
from latentdiff.training import checkpoint

stage = script(sys.argv.pop(1))
train = stage.train


def train_and_keep(r, world, parts, *servants) -> None:
    train(r, world, parts, *servants)
    learner, folder = getattr(parts, "learner", parts), servants[-1].folder
    checkpoint.write_tensors(folder / f"model{world.rank}.safetensors", learner.model.state_dict())
    checkpoint.write_tensors(folder / f"ema{world.rank}.safetensors", learner.ema.model.state_dict())


stage.train = train_and_keep
cli.run(stage.main)
