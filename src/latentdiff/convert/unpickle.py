"""Foreign weights, opened so that nothing in the file can run: tensors and plain containers, or a refusal.

A pickle is a program: it may name any function of any package and have it called. Here the names that build tensors and
containers are known; what trainers leave beside the weights (callbacks, hyper-parameters) becomes an inert stand-in;
any other name is refused before it is imported.
"""

import collections
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentdiff.config import UserError

SAFE = {  # what tensors and containers are built with
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): collections.defaultdict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): torch._tensor._rebuild_from_type_v2,
    ("torch", "Tensor"): torch.Tensor,
    ("torch.storage", "UntypedStorage"): torch.UntypedStorage,
    ("torch.nn.parameter", "Parameter"): torch.nn.Parameter,
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes, in the pickles of Python 2's age
}
SAFE |= {(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (set, frozenset, dict, list, int, float)}
INERT = (  # packages whose objects lie beside the weights; never imported, see StandIn
    "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "argparse", "numpy", "pathlib", "typing", "enum",
    "ldm", "taming", "main", "__main__",
)  # fmt: skip


class StandIn(dict):
    """In the place of an object that is no weight: takes whatever the pickle gives it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass

    def __hash__(self) -> int:  # some are keys
        return id(self)

    def append(self, item: Any) -> None:
        pass

    def extend(self, items: Any) -> None:
        pass


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in SAFE:
            return SAFE[module, name]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if module.split(".")[0] in INERT:
            return type(name, (StandIn,), {})
        raise Hostile(f"{module}.{name}")


class Hostile(Exception):
    """A pickle that names something else than tensors and containers."""


def _load(file: Any, **options: Any) -> Any:
    return Unpickler(file, **options).load()


PICKLE = types.SimpleNamespace(Unpickler=Unpickler, load=_load, __name__="latentdiff.convert.unpickle")


def open_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """A .ckpt, .pt, .bin or .safetensors -> its tensors by name, mapped from the file, and what else it says.

    UserError where it is none of these, is damaged, or holds a pickle that names anything but tensors and containers.
    """
    if not path.is_file():
        raise UserError(f"no file at {path}")
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        return _open_safetensors(path) if start[8:9] == b"{" else _open_pickle(path, start[:2] == b"PK")
    except Hostile as error:
        raise UserError(
            f"{path} is refused: opening it would call {error}, which has no place in a file of weights"
        ) from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{path} cannot be read as safetensors or as a PyTorch checkpoint ({error or type(error).__name__}); "
            f"is it complete?"
        ) from error


def _open_safetensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); is it complete?") from error


def _open_pickle(path: Path, zipped: bool) -> tuple[dict[str, Tensor], dict]:
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is a TorchScript program, not a file of weights; it is refused")
    content = torch.load(path, map_location="cpu", pickle_module=PICKLE, weights_only=False, mmap=zipped)
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not tensors by name")
    state = content.get("state_dict", content)
    if not isinstance(state, dict):
        raise UserError(f"{path} holds a state_dict of type {type(state).__name__}, not tensors by name")
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; its entries are {', '.join(map(str, list(content)[:8])) or 'none'}")
    numbers = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (int, float, str))}
    return tensors, numbers
