"""REPA: the projection's loss, its teacher's file, and a run that learns to see as the teacher does."""

import pytest
import torch
from conftest import STAGE_TWO, call, rows, tensors_of
from torch import nn

from latentdiff.config import UserError
from latentdiff.diffusion.alignment import AlignConfig, Alignment, open_teacher


def teacher(path, dim=6):
    torch.manual_seed(1)
    torch.jit.script(nn.Sequential(nn.Conv2d(3, dim, 8, 8), nn.Tanh())).save(path)
    return path


def test_the_loss_is_none_where_the_projection_is_the_feature_and_twice_the_weight_where_it_is_its_opposite():
    made = Alignment(AlignConfig(dim=4, weight=0.5), 4)
    made.project = nn.Identity()
    h = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    bigger = nn.functional.interpolate(3 * h, scale_factor=2, mode="nearest")
    assert torch.allclose(made(h, bigger), torch.zeros(2), atol=1e-6)
    assert torch.allclose(made(h, -h), torch.ones(2), atol=1e-6)


def test_a_file_that_is_no_teacher_is_refused_by_name(tmp_path):
    (tmp_path / "no.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match="align.path"):
        open_teacher(AlignConfig(str(tmp_path / "no.pt")), torch.device("cpu"))
    with pytest.raises(UserError, match="align.dim is 7"):
        open_teacher(AlignConfig(str(teacher(tmp_path / "t.pt")), dim=7), torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("cached", ["true", "false"])
def test_a_run_with_a_teacher_trains_and_draws(tmp_path, runs, cached):
    short = ("train.steps=4", "train.checkpoint_every=4", "train.val_every=4", "train.sample_every=4")
    align = ("align=Align", f"align.path={teacher(tmp_path / 't.pt')}", "align.dim=6")
    call(*STAGE_TWO, *short, *align, f"cache.enabled={cached}", "name=aligned")
    assert any(name.startswith("model.alignment.project") for name in tensors_of(runs / "aligned"))
    assert all(row["loss"] > 0 for row in rows(runs / "aligned") if "loss" in row)
