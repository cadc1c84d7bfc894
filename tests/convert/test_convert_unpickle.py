"""Weights of other projects are opened without executing code."""

import collections
import os
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentdiff.config import UserError
from latentdiff.convert.unpickle import open_weights

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Calls:
    """Its pickle calls a function when it is opened."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def is_same(state):
    return state.keys() == STATE.keys() and all(torch.equal(state[k], STATE[k]) for k in STATE)


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_and_numbers_are_read(tmp_path, zipped):
    path = tmp_path / "model.ckpt"
    content = {"state_dict": collections.OrderedDict(STATE), "global_step": 7, "epoch": 1}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    state, metadata = open_weights(path)
    assert is_same(state) and metadata == {"global_step": 7, "epoch": 1}
    torch.save(STATE, path)
    assert is_same(open_weights(path)[0])


def test_safetensors_are_read_with_any_file_name(tmp_path):
    save_file(STATE, tmp_path / "model.ckpt", {"format": "pt", "step": "3"})
    state, metadata = open_weights(tmp_path / "model.ckpt")
    assert is_same(state) and metadata["step"] == "3"


def test_other_objects_of_a_trainer_become_inert(tmp_path, monkeypatch):
    module = types.ModuleType("pytorch_lightning")
    for base in (object, dict, list):
        kind = type(f"Kind{base.__name__}", (base,), {"__module__": "pytorch_lightning"})
        setattr(module, kind.__name__, kind)
    monkeypatch.setitem(sys.modules, "pytorch_lightning", module)
    dict_object, list_object = module.Kinddict(x=1), module.Kindlist([1, 2])
    dict_object.y = list_object.y = module.Kindobject()
    objects = {
        "callbacks": {module.Kindobject: {"best": np.float32(3), "array": np.zeros(3)}},
        "hyper": [dict_object, list_object],
    }
    torch.save({"state_dict": STATE, "global_step": 7} | objects, tmp_path / "model.ckpt")
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    assert is_same(open_weights(tmp_path / "model.ckpt")[0])
    assert "pytorch_lightning" not in sys.modules


HOSTILE = {
    "system": lambda path: Calls(os.system, f"touch {path}"),
    "eval": lambda path: Calls(eval, f"open({str(path)!r}, 'w')"),
    "open": lambda path: Calls(open, str(path), "w"),
    "attribute": lambda path: Calls(getattr, "x", "upper"),
    "nested": lambda path: Calls(torch.storage._load_from_bytes, pickle.dumps(Calls(os.system, f"touch {path}"))),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_would_execute_code_is_refused_and_executes_nothing(tmp_path, name, zipped):
    path, marker = tmp_path / "model.ckpt", tmp_path / "ran"
    content = {"state_dict": dict(STATE), "callbacks": HOSTILE[name](marker)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="refused: opening it would call"):
        open_weights(path)
    assert not marker.exists()
    if name in ("system", "eval", "open"):  # negative control: torch.load executes it
        torch.load(path, weights_only=False)
        assert marker.exists()


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a text", b"PK\x03\x04 no zip", b"\x08\0\0\0\0\0\0\0{]......."]
)
def test_another_file_is_refused_in_one_sentence(tmp_path, content):
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(UserError, match=r"cannot be read as safetensors .*is it complete\?"):
        open_weights(tmp_path / "model.ckpt")


def test_a_truncated_file_and_one_without_tensors_are_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": STATE}, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(UserError, match="cannot be read"):
        open_weights(path)
    torch.save({"epoch": 1}, path)
    with pytest.raises(UserError, match="has no tensors; its entries are epoch"):
        open_weights(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(UserError, match="TorchScript"):
        open_weights(path)
    with pytest.raises(UserError, match="no file at"):
        open_weights(tmp_path / "nothing.ckpt")
