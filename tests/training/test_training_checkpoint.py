import json
import os

import pytest
import torch
from safetensors import SafetensorError

from latentdiff.config import UserError
from latentdiff.training import checkpoint


def parts(value=1.0):
    return {"model": {"w": torch.full((2, 3), value), "b": torch.arange(3)}, "ema": {"w": torch.zeros(1)}}


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path, 20, parts(), {"scaler": {"scale": 2.0}}, keep=3)
    tensors, state = checkpoint.load(path)
    assert path.name == "step_00000020" and state["step"] == 20 and state["scaler"] == {"scale": 2.0}
    assert torch.equal(tensors["model"]["w"], torch.ones(2, 3)) and tensors["model"]["b"].dtype == torch.int64
    assert set(tensors) == {"model", "ema"}


def test_a_part_without_tensors_is_kept(tmp_path):
    path = checkpoint.save(tmp_path, 1, parts() | {"optimizer": {}}, {}, keep=3)
    assert checkpoint.load(path)[0]["optimizer"] == {}


def test_only_safetensors_and_json_are_written(tmp_path):
    path = checkpoint.save(tmp_path, 20, parts(), {}, keep=3)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert not list(tmp_path.rglob(".*"))


def test_the_newest_are_kept_in_order_of_steps(tmp_path):
    for step in (5, 10, 9999, 100000):
        checkpoint.save(tmp_path, step, parts(), {}, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00009999", "step_00100000"]


def test_a_step_saved_again_is_replaced(tmp_path):
    checkpoint.save(tmp_path, 5, parts(1.0), {}, keep=2)
    path = checkpoint.save(tmp_path, 5, parts(7.0), {}, keep=2)
    assert checkpoint.load(path)[0]["model"]["w"][0, 0] == 7


def test_what_a_kill_left_is_cleared_by_the_next_write(tmp_path):
    for name in (".step_00000003.tmp", ".step_00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("half")
    checkpoint.save(tmp_path, 5, parts(), {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]


def test_a_checkpoint_loses_its_name_before_it_is_deleted(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 5, parts(), {}, keep=1)
    monkeypatch.setattr(checkpoint, "_clear", lambda folder: None)  # killed before it deletes
    checkpoint.save(tmp_path, 10, parts(), {}, keep=1)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00000010"]


def test_a_checkpoint_that_cannot_be_deleted_yet_stops_nothing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, {}, {}, keep=1)
    rmdir = os.rmdir

    def busy(path, **options):
        if "step_00000001" in str(path):
            raise OSError(39, "Directory not empty")
        rmdir(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", busy)
        checkpoint.save(tmp_path, 2, {}, {}, keep=1)
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_00000002"]
    checkpoint.save(tmp_path, 3, {}, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_a_half_written_checkpoint_is_none(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 5, parts(), {}, keep=2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 10, parts(), {}, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00000005"]
    assert checkpoint.save(tmp_path, 10, parts(), {}, keep=2).exists()  # what was left does not disturb


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path, monkeypatch, error):
    checkpoint.save(tmp_path, 5, parts(), {}, keep=2)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left.*the last one is intact"):
        checkpoint.save(tmp_path, 10, parts(), {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]


@pytest.mark.parametrize("harm", ["cut", "longer", "missing", "no state", "bad state", "empty state"])
def test_a_damaged_checkpoint_is_named(tmp_path, harm):
    path = checkpoint.save(tmp_path, 5, parts(), {}, keep=2)
    file, state = path / "model.safetensors", path / "state.json"
    content = file.read_bytes()
    {
        "cut": lambda: file.write_bytes(content[:-1]),
        "longer": lambda: file.write_bytes(content + b"x"),
        "missing": file.unlink,
        "no state": state.unlink,
        "bad state": lambda: state.write_text("{"),
        "empty state": lambda: state.write_text("{}"),
    }[harm]()
    with pytest.raises(UserError, match="step_00000005 is damaged"):
        checkpoint.load(path)


def test_tensors_are_stored_whole_whatever_their_layout(tmp_path):
    x = torch.arange(24.0).reshape(2, 3, 4)
    shared = {"a": x.transpose(0, 2), "b": x[:, 1], "c": x.clone().requires_grad_(), "d": x, "tied to d": x, "e": x[1]}
    checkpoint.write_tensors(tmp_path / "x.safetensors", shared, {"about": "layouts"})
    back = checkpoint.read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in shared.items())
    assert checkpoint.read_metadata(tmp_path / "x.safetensors") == {"format": "pt", "about": "layouts"}


def test_unreadable_tensors_are_named(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"nothing of the kind")
    for name in ("x.safetensors", "nowhere.safetensors"):
        with pytest.raises(UserError, match=name):
            checkpoint.read_tensors(tmp_path / name)


def test_json_is_replaced_whole(tmp_path):
    checkpoint.write_json(tmp_path / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        checkpoint.write_json(tmp_path / "x.json", {"a": object()})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": 1}
