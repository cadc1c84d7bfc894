"""REPA: the alignment loss, the file of the feature encoder, and a training run with it."""

import pytest
import torch
from conftest import STAGE_TWO, call, metrics_of, tensors_of
from torch import nn

from latentdiff.config import UserError
from latentdiff.diffusion.alignment import AlignConfig, Alignment, open_feature_encoder


def save_feature_encoder(path, dim=6):
    torch.manual_seed(1)
    torch.jit.script(nn.Sequential(nn.Conv2d(3, dim, 8, 8), nn.Tanh())).save(path)
    return path


def test_the_loss_is_zero_for_equal_features_and_twice_the_weight_for_opposite_ones():
    alignment = Alignment(AlignConfig(dim=4, weight=0.5), 4)
    alignment.project = nn.Identity()
    h = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    larger = nn.functional.interpolate(3 * h, scale_factor=2, mode="nearest")
    assert torch.allclose(alignment(h, larger), torch.zeros(2), atol=1e-6)
    assert torch.allclose(alignment(h, -h), torch.ones(2), atol=1e-6)


def test_a_file_that_is_no_feature_encoder_is_refused_by_name(tmp_path):
    (tmp_path / "no.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="align.path"):
        open_feature_encoder(AlignConfig(str(tmp_path / "no.pt")), torch.device("cpu"))
    with pytest.raises(UserError, match="align.dim is 7"):
        path = save_feature_encoder(tmp_path / "encoder.pt")
        open_feature_encoder(AlignConfig(str(path), dim=7), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_run_with_a_feature_encoder_trains_and_samples(tmp_path, runs, cached):
    short = ("train.steps=4", "train.checkpoint_every=4", "train.val_every=4", "train.sample_every=4")
    align = ("align=Align", f"align.path={save_feature_encoder(tmp_path / 'encoder.pt')}", "align.dim=6")
    call(*STAGE_TWO, *short, *align, f"cache.enabled={cached}", "name=aligned")
    assert any(name.startswith("model.alignment.project") for name in tensors_of(runs / "aligned"))
    assert all(row["loss"] > 0 for row in metrics_of(runs / "aligned") if "loss" in row)
