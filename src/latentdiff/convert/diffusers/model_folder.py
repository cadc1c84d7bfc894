"""A model's folder in the format of diffusers: config.json and weights."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from latentdiff.config import UserError
from latentdiff.convert import key_map
from latentdiff.convert.converted_run import write_safetensors
from latentdiff.convert.key_map import KeyMap, Shapes, Weights
from latentdiff.convert.unpickle import open_weights
from latentdiff.training.files import write_json

Options = dict[str, Any]

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # the last two are those of transformers
PATTERNS = ("{}.safetensors", "{}-*-of-*.safetensors", "{}.bin", "{}-*-of-*.bin", "{}.fp16.safetensors", "{}.fp16.bin")
RUN_RECIPE, RUN_WEIGHTS = "latentdiff.json", "conditioner.safetensors"  # what diffusers cannot express of a run
VERSION = "0.30.0"  # of diffusers, the first that reads all exported options
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.12


def read_json(path: Path) -> Options:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} has a {type(content).__name__} at its top level; it must be an object")
    return content


def read_weights(folder: Path) -> Weights:
    """The weights of a model, whether in one file or sharded, with half precision cast to float32."""
    patterns = (pattern.format(stem) for pattern in PATTERNS for stem in STEMS)
    paths = next((paths for pattern in patterns if (paths := sorted(folder.glob(pattern)))), None)
    if paths is None:
        raise UserError(f"{folder} has no weights; it must have {STEMS[0]}.safetensors (or {STEMS[1]}) or a .bin")
    weights = {name: value for path in paths for name, value in open_weights(path)[0].items()}
    return {_new_name(name): value.float() if value.is_floating_point() else value for name, value in weights.items()}


def _new_name(name: str) -> str:
    """A parameter's name after the attention blocks of diffusers were renamed."""
    path, _, kind = name.rpartition(".")
    path, _, layer = path.rpartition(".")
    is_old = ".attentions." in path and layer in OLD_NAMES
    return f"{path}.{OLD_NAMES[layer]}.{kind}" if is_old else name


def write_model(folder: Path, options: Options, weights: Weights | None, stem: str = STEMS[0]) -> None:
    """Write config.json and the weights; for a scheduler, which has none, scheduler_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / ("scheduler_config.json" if weights is None else "config.json"), options)
    if weights is not None:
        write_safetensors(folder / f"{stem}.safetensors", weights)


def read_options(config: Options, defaults: Options, fixed: Options, ignored: Iterable[str] = ()) -> Options:
    """The options in `defaults`, with their values there if config.json does not have them.

    Refuses, by name, an option of `fixed` with another value (a tuple lists equivalent values), and any option that is
    in none of the three: it may change what the model computes.
    """
    kind = config.get("_class_name") or config.get("model_type")
    for name, value in config.items():
        if name in fixed:
            allowed = fixed[name] if isinstance(fixed[name], tuple) else (fixed[name],)
            if value not in allowed:
                raise UserError(f"{kind} has {name}={value!r}; only {allowed[0]!r} can be converted")
        elif name not in defaults and name not in ignored and not name.startswith("_") and value is not None:
            raise UserError(f"{kind} has the unknown option {name}={value!r}, which may change what it computes")
    return {name: config.get(name, default) for name, default in defaults.items()}


def levels_with_attention(o: Options, block_types: dict[str, bool]) -> tuple[int, ...]:
    """The levels whose blocks have attention; block_types: type of block -> whether it has attention."""
    down, up = (list(o[f"{way}_block_types"]) for way in ("down", "up"))
    attention = [block_types.get(kind) for kind in down]
    if None in attention or [block_types.get(kind) for kind in up[::-1]] != attention:
        raise UserError(
            f"up_block_types is {up}; it must mirror down_block_types, and all must be one of {', '.join(block_types)}"
        )
    return tuple(level for level, has_attention in enumerate(attention) if has_attention)


def channel_mult(widths: list[int]) -> tuple[int, ...]:
    """block_out_channels as multiples of the first, which is also the width of the first convolution."""
    if any(width % widths[0] for width in widths):
        raise UserError(f"block_out_channels is {list(widths)}; all must be multiples of the first")
    return tuple(width // widths[0] for width in widths)


def block_out_channels(channels: int, multiples: tuple[int, ...], name: str) -> list[int]:
    """The inverse of channel_mult; name: of the part of the recipe."""
    if multiples[0] != 1:
        raise UserError(
            f"{name}.channel_mult is {list(multiples)}; it must start with 1, because in diffusers the first level has "
            f"the width of the first convolution"
        )
    return [channels * multiple for multiple in multiples]


def import_weights(state: Weights, keys: KeyMap, shapes: Shapes, kind: str) -> Weights:
    """Weights of diffusers -> latentdiff; UserError if any are missing, unknown or of another shape."""
    weights, missing, wrong = key_map.to_dst(state, keys, shapes)
    unknown = sorted(state.keys() - {src for entry in keys.values() for src in entry.src})
    problems = {"are missing": sorted(missing), "are unknown": unknown, "do not fit config.json": wrong}
    for problem, names in problems.items():
        if names:
            listed = ", ".join(names[:8]) + " ..." * (len(names) > 8)
            raise UserError(f"{kind}: {len(names)} weights {problem}: {listed}")
    return weights
