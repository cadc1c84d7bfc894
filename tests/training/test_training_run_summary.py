from types import SimpleNamespace

import torch
from torch import nn

from latentdiff.training.distributed import World
from latentdiff.training.log import Log
from latentdiff.training.run_summary import run_summary
from latentdiff.training.settings import TrainConfig


class Dataset(list):
    unreadable = [("a", "no file"), ("b", "no file"), ("c", "no file")]
    unlisted = ["d", "e"]


def test_the_summary_has_a_line_per_fact(tmp_path):
    cfg = TrainConfig(steps=1000, grad_accum_steps=4, warmup_steps=100, lr_schedule="linear", precision="fp32")
    log = Log(tmp_path, World(0, 2, torch.device("cpu")), 0, cfg)
    autoencoder = SimpleNamespace(z_channels=4, factor=8)
    text = run_summary(
        SimpleNamespace(train=cfg), log, 20, Dataset(range(20_000)), range(500), (32, 64), autoencoder,
        {"unet": nn.Linear(99, 10)}, latent="autoencoder demo", objective="v",
    )  # fmt: skip
    lines = dict(line.split(maxsplit=1) for line in text.splitlines())
    assert list(lines) == ["run", "data", "latent", "parameters", "objective", "batch", "lr", "steps", "device"]
    assert lines["run"] == f"{tmp_path}, resumed at step 20"
    unused = "3 unreadable or missing, 2 not listed in the metadata"
    assert lines["data"] == f"20,000 training, 500 validation images, 32 x 64; {unused}"
    assert lines["latent"] == "4 x 4 x 8 (f = 8), autoencoder demo" and lines["parameters"] == "unet 1,000"
    assert lines["batch"] == "64 = 2 processes x 4 gradient accumulation steps x 8"
    assert lines["lr"].startswith("0.0001, warm-up 100 steps, linear decay to 0; ")
    assert lines["steps"] == "1,000 (3.2 epochs), a checkpoint every 1,000"
    assert lines["device"].startswith("cpu, float32, ")
