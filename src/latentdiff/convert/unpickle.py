"""Opens weights of other projects without executing code: a pickle may only contain tensors and plain containers.

A pickle can call any function of any package. Here the functions that build tensors and containers are allowed,
objects that trainers save beside the weights (callbacks, hyperparameters) become inert, and any other name is refused.
"""

import collections
import pickle
import types
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from latentdiff.config import UserError

ALLOWED = {
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
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),  # bytes in pickles of Python 2
}
ALLOWED |= {(m, t.__name__): t for m in ("builtins", "__builtin__") for t in (set, frozenset, dict, list, int, float)}
INERT = (  # packages whose objects are replaced by InertObject; they are never imported
    "pytorch_lightning", "lightning", "lightning_fabric", "omegaconf", "argparse", "numpy", "pathlib", "typing", "enum",
    "ldm", "taming", "main", "__main__",
)  # fmt: skip


class UnsafePickle(Exception):
    """A pickle with a name that is not allowed."""


class InertObject(dict):
    """Accepts all that a pickle does with an object, and ignores it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __hash__(self) -> int:  # some are keys of a dict
        return id(self)

    def ignore(self, *args: Any) -> None:
        pass

    __setstate__ = append = extend = ignore


class Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module == "torch" and (name.endswith("Storage") or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if module.split(".")[0] in INERT:
            return type(name, (InertObject,), {})
        raise UnsafePickle(f"{module}.{name}")


PICKLE_MODULE = types.SimpleNamespace(
    Unpickler=Unpickler, load=lambda file, **options: Unpickler(file, **options).load(), __name__=__name__
)


def open_weights(path: Path) -> tuple[dict[str, Tensor], dict]:
    """The tensors of a .ckpt, .pt, .bin or .safetensors file, memory-mapped if possible, and other numbers and texts.

    Raises UserError if the file is damaged, of another kind, or a pickle that is not allowed.
    """
    if not path.is_file():
        raise UserError(f"no file at {path}")
    with open(path, "rb") as file:
        start = file.read(16)
    try:
        if start[8:9] == b"{":
            with safe_open(path, "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        return _open_pickle(path, is_zip=start[:2] == b"PK")
    except UnsafePickle as error:
        raise UserError(f"{path} is refused: opening it would call {error}, which weights do not need") from None
    except UserError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise UserError(
            f"{path} cannot be read as safetensors or as a PyTorch checkpoint ({error or type(error).__name__}); "
            f"is it complete?"
        ) from error


def _open_pickle(path: Path, is_zip: bool) -> tuple[dict[str, Tensor], dict]:
    if is_zip:
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                raise UserError(f"{path} is a TorchScript program; it must be a file of weights")
    content = torch.load(path, map_location="cpu", pickle_module=PICKLE_MODULE, weights_only=False, mmap=is_zip)
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict):
        raise UserError(f"{path} has a {type(state).__name__} as its state dict; it must be a dict of tensors")
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} has no tensors; its entries are {', '.join(map(str, list(content)[:8])) or 'none'}")
    return tensors, {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, (int, float, str))}
