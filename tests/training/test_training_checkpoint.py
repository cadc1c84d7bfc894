import os

import pytest
import torch
from safetensors import SafetensorError

from latentdiff.config import UserError
from latentdiff.training import checkpoint


def tensors_by_file(value=1.0):
    return {"model": {"w": torch.full((2, 3), value), "b": torch.arange(3)}, "ema": {"w": torch.zeros(1)}}


def test_save_then_load_returns_the_same_tensors_and_state(tmp_path):
    path = checkpoint.save(tmp_path, 20, tensors_by_file(), {"scaler": {"scale": 2.0}}, keep=3)
    tensors, scalars = checkpoint.load(path)
    assert path.name == "step_00000020" and scalars["step"] == 20 and scalars["scaler"] == {"scale": 2.0}
    assert torch.equal(tensors["model"]["w"], torch.ones(2, 3)) and tensors["model"]["b"].dtype == torch.int64
    assert set(tensors) == {"model", "ema"}


def test_a_file_without_tensors_is_kept(tmp_path):
    path = checkpoint.save(tmp_path, 1, tensors_by_file() | {"optimizer": {}}, {}, keep=3)
    assert checkpoint.load(path)[0]["optimizer"] == {}


def test_only_safetensors_and_json_are_written(tmp_path):
    path = checkpoint.save(tmp_path, 20, tensors_by_file(), {}, keep=3)
    assert {p.suffix for p in path.iterdir()} == {".safetensors", ".json"}
    assert not list(tmp_path.rglob(".*"))


def test_the_checkpoints_with_the_most_steps_are_kept(tmp_path):
    for step in (5, 10, 9999, 100000):
        checkpoint.save(tmp_path, step, tensors_by_file(), {}, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00009999", "step_00100000"]


def test_saving_a_step_again_replaces_its_checkpoint(tmp_path):
    checkpoint.save(tmp_path, 5, tensors_by_file(1.0), {}, keep=2)
    path = checkpoint.save(tmp_path, 5, tensors_by_file(7.0), {}, keep=2)
    assert checkpoint.load(path)[0]["model"]["w"][0, 0] == 7


def test_the_next_save_deletes_what_a_killed_process_left(tmp_path):
    for name in (".step_00000003.tmp", ".step_00000001.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("incomplete")
    checkpoint.save(tmp_path, 5, tensors_by_file(), {}, keep=2)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]


def test_a_checkpoint_is_renamed_before_it_is_deleted(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 5, tensors_by_file(), {}, keep=1)
    monkeypatch.setattr(checkpoint, "_delete_hidden", lambda folder: None)  # killed before it deletes
    checkpoint.save(tmp_path, 10, tensors_by_file(), {}, keep=1)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00000010"]


def test_a_checkpoint_that_cannot_be_deleted_yet_does_not_stop_the_run(tmp_path, monkeypatch):
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


def test_an_incomplete_checkpoint_is_not_listed(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 5, tensors_by_file(), {}, keep=2)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(tmp_path, 10, tensors_by_file(), {}, keep=2)
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path)] == ["step_00000005"]
    assert checkpoint.save(tmp_path, 10, tensors_by_file(), {}, keep=2).exists()  # despite the incomplete one


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("No space left on device")])
def test_a_full_disk_raises_an_error_and_keeps_the_last_checkpoint(tmp_path, monkeypatch, error):
    checkpoint.save(tmp_path, 5, tensors_by_file(), {}, keep=2)

    def full(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left.*the last checkpoint is intact"):
        checkpoint.save(tmp_path, 10, tensors_by_file(), {}, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_00000005"]


@pytest.mark.parametrize("damage", ["truncated", "longer", "missing", "no state", "bad state", "empty state"])
def test_the_error_names_a_damaged_checkpoint(tmp_path, damage):
    path = checkpoint.save(tmp_path, 5, tensors_by_file(), {}, keep=2)
    file, state = path / "model.safetensors", path / "state.json"
    content = file.read_bytes()
    {
        "truncated": lambda: file.write_bytes(content[:-1]),
        "longer": lambda: file.write_bytes(content + b"x"),
        "missing": file.unlink,
        "no state": state.unlink,
        "bad state": lambda: state.write_text("{"),
        "empty state": lambda: state.write_text("{}"),
    }[damage]()
    with pytest.raises(UserError, match="step_00000005 is damaged"):
        checkpoint.load(path)


def test_tensors_of_any_memory_layout_are_stored_completely(tmp_path):
    x = torch.arange(24.0).reshape(2, 3, 4)
    shared = {"a": x.transpose(0, 2), "b": x[:, 1], "c": x.clone().requires_grad_(), "d": x, "tied to d": x, "e": x[1]}
    checkpoint.write_tensors(tmp_path / "x.safetensors", shared, {"note": "layouts"})
    loaded = checkpoint.read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in shared.items())
    assert checkpoint.read_metadata(tmp_path / "x.safetensors") == {"format": "pt", "note": "layouts"}


def test_the_error_names_an_unreadable_file(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not safetensors")
    for name in ("x.safetensors", "nowhere.safetensors"):
        with pytest.raises(UserError, match=name):
            checkpoint.read_tensors(tmp_path / name)
