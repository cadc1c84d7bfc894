"""A model's folder as diffusers keeps it, config.json and weights; options that may be read; names, theirs <-> ours."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.convert import stream
from latentdiff.convert.unpickle import open_weights
from latentdiff.training import checkpoint

Weights = dict[str, Tensor]
Options = dict[str, Any]

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # the last two are the transformers library's
FILES = ("{}.safetensors", "{}-*-of-*.safetensors", "{}.bin", "{}-*-of-*.bin", "{}.fp16.safetensors", "{}.fp16.bin")
OWN, REST = "latentdiff.json", "conditioner.safetensors"  # in an exported folder: what diffusers has no place for
VERSION = "0.30.0"  # of diffusers, which first wrote all that we write
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.12


# ---- files


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_weights(folder: Path) -> Weights:
    """All weights of a model's folder, in one file or in pieces; half types in float32."""
    patterns = (pattern.format(stem) for pattern in FILES for stem in STEMS)
    paths = next((found for pattern in patterns if (found := sorted(folder.glob(pattern)))), None)
    if paths is None:
        raise UserError(f"{folder} has no weights: neither {STEMS[0]}.safetensors nor .bin, nor those of {STEMS[1]}")
    weights = {name: value for path in paths for name, value in open_weights(path)[0].items()}
    return {_today(name): value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _today(name: str) -> str:
    """A parameter's name since the attention blocks of diffusers were renamed."""
    path, _, kind = name.rpartition(".")
    path, _, word = path.rpartition(".")
    return f"{path}.{OLD_NAMES[word]}.{kind}" if ".attentions." in path and word in OLD_NAMES else name


def write(folder: Path, config: Options, weights: Weights | None, stem: str = STEMS[0]) -> None:
    """config.json, scheduler_config.json for what has no weights, and the weights beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    name = "scheduler_config.json" if weights is None else "config.json"
    checkpoint.write_json(folder / name, config)
    if weights is not None:
        stream.write(folder / f"{stem}.safetensors", weights)


# ---- options


def options(config: Options, read: Options, fixed: Options, ignored: Iterable[str] = ()) -> Options:
    """The options that are `read`, with the values they have where config.json leaves them out.

    Refused by name: one of `fixed` with another value (a tuple lists those that are the same to us), and any that is
    neither read, fixed nor known to change nothing.
    """
    kind = config.get("_class_name") or config.get("model_type")
    for name, value in config.items():
        if name in fixed:
            wanted = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in wanted:
                raise UserError(f"{kind} has {name}={value!r}; this project's networks know only {wanted[0]!r}")
        elif name not in read and name not in ignored and not name.startswith("_") and value is not None:
            raise UserError(f"{kind} has the unknown option {name}={value!r}, which may change what it computes")
    return {name: config.get(name, default) for name, default in read.items()}


def same(name: str, value: Any) -> Any:
    """The one value of an option that may differ from level to level; UserError where it does."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if any(other != values[0] for other in values):
        raise UserError(f"{name} is {value}; it must be the same on every level")
    return values[0]


def multiples(name: str, widths: list[int]) -> tuple[int, ...]:
    """Widths of the levels as multiples of the first, which is that of the first convolution as well."""
    if any(width % widths[0] for width in widths):
        raise UserError(f"{name} is {list(widths)}; every width must be a multiple of the first")
    return tuple(width // widths[0] for width in widths)


def widths(channels: int, multiples: tuple[int, ...], what: str) -> list[int]:
    """The inverse of multiples."""
    if multiples[0] != 1:
        raise UserError(
            f"{what}.channel_mult is {list(multiples)}; diffusers cannot express a first level that is wider than the "
            f"first convolution: channel_mult must begin with 1"
        )
    return [channels * multiple for multiple in multiples]


# ---- weights


class Place(NamedTuple):
    names: tuple[str, ...]  # of diffusers' parameters, whose rows follow one another in ours
    axes: int = 0  # of size 1 that their shape has more at its end than ours (below 0: fewer)


def from_theirs(state: Weights, places: dict[str, Place], shapes: dict[str, torch.Size], what: str) -> Weights:
    """Their weights in our names and shapes; UserError lists what is missing, left over or of another shape."""
    wanted = [name for place in places.values() for name in place.names]
    missing, unknown = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    for kind, names in (("are missing", missing), ("are unknown", unknown)):
        if names:
            raise UserError(f"{what}: {len(names)} weights {kind}: {', '.join(names[:8])}{' ...' * (len(names) > 8)}")
    mine = {}
    for name, place in places.items():
        value = torch.cat([state[theirs] for theirs in place.names]) if len(place.names) > 1 else state[place.names[0]]
        if _core(value.shape) != _core(shapes[name]):
            raise UserError(
                f"{what}: {place.names[0]} has the shape {list(value.shape)}, and config.json asks for one that fits "
                f"{list(shapes[name])}"
            )
        mine[name] = value.reshape(shapes[name])
    return mine


def to_theirs(state: Weights, places: dict[str, Place]) -> Weights:
    """The inverse of from_theirs."""
    theirs = {}
    for name, place in places.items():
        shape = state[name].shape
        shape = shape[: len(shape) + place.axes] if place.axes < 0 else (*shape, *[1] * place.axes)
        pieces = state[name].reshape(shape).chunk(len(place.names))
        theirs |= {their: piece.contiguous() for their, piece in zip(place.names, pieces)}
    return theirs


def _core(shape: torch.Size) -> list[int]:
    """A shape without the axes of size 1 at its end: a linear map and a 1x1 convolution have the same."""
    core = list(shape)
    while core and core[-1] == 1:
        core.pop()
    return core
