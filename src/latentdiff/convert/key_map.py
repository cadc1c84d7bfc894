"""Names and shapes of weights: another project (src) <-> latentdiff (dst), as tables that are read in both directions.

A converter has two tables for a network: the prefixes of its layers, and the names inside each class of layer.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Shapes = dict[str, torch.Size]


class Entry(NamedTuple):
    """Where and how the other project stores one parameter of latentdiff."""

    src: tuple[str, ...]  # tensors of the other project; several are concatenated along dimension 0
    extra_dims: int = 0  # trailing dimensions of size 1 that src has more (1x1 convolutions); below 0: fewer
    heads: int = 0  # if above 0: the output channels of src are ordered [heads, 3, d], in latentdiff [3, heads, d]

    def src_shape(self, shape: torch.Size) -> list[int]:
        """The shape of src, given that of the parameter."""
        return [*shape[: len(shape) + min(0, self.extra_dims)], *[1] * self.extra_dims]

    def to_dst(self, value: Tensor, shape: torch.Size) -> Tensor:
        value = value.reshape(shape)
        return _swap_groups(value, self.heads, 3) if self.heads else value

    def to_src(self, value: Tensor) -> Weights:
        value = _swap_groups(value, 3, self.heads) if self.heads else value
        chunks = value.reshape(self.src_shape(value.shape)).chunk(len(self.src))
        return {name: chunk.contiguous() for name, chunk in zip(self.src, chunks)}


KeyMap = dict[str, Entry]  # parameter of latentdiff -> Entry


class LayerKeys(NamedTuple):
    """The names inside one class of layer."""

    names: Mapping[str, str | tuple[str, ...]] = {}  # component of a name: dst -> src; several: concatenated
    extra_dims: Mapping[str, int] = {}  # parameter -> Entry.extra_dims
    by_head: tuple[str, ...] = ()  # parameters with the layer's number of heads as Entry.heads


def build_key_map(network: nn.Module, prefixes: dict[str, str], layers: dict[type, LayerKeys]) -> KeyMap:
    """The map of all parameters below the prefixes.

    Args:
        network: a network of latentdiff; it may be on the meta device.
        prefixes: path of a layer in the network -> its path in the other project.
        layers: class of layer -> the names inside it; classes that are not listed have the same names in both projects.
    """
    keys = {}
    for dst, src in prefixes.items():
        layer = network.get_submodule(dst)
        table = layers.get(type(layer), LayerKeys())
        for name, _ in layer.named_parameters():
            names = [src]
            for part in name.split("."):
                parts = table.names.get(part, part)
                names = [f"{prefix}.{p}" for prefix in names for p in ([parts] if isinstance(parts, str) else parts)]
            heads = layer.heads if name in table.by_head else 0
            keys[f"{dst}.{name}".lstrip(".")] = Entry(tuple(names), table.extra_dims.get(name, 0), heads)
    return keys


def add_prefix(keys: KeyMap, dst: str, src: str) -> KeyMap:
    """The map of a network that is a part of a larger one."""
    return {dst + name: entry._replace(src=tuple(src + s for s in entry.src)) for name, entry in keys.items()}


def to_dst(state: Weights, keys: KeyMap, shapes: Shapes) -> tuple[Weights, list[str], list[str]]:
    """Convert weights of the other project.

    Returns: the weights of latentdiff in `shapes`; the names that are missing; a message for each wrong shape.
    """
    weights, missing, wrong = {}, [], []
    for name, entry in keys.items():
        values = [state[src] for src in entry.src if src in state]
        missing += [src for src in entry.src if src not in state]
        if len(values) == len(entry.src):
            value = torch.cat(values) if len(values) > 1 else values[0]
            if _trim(value.shape) == _trim(shapes[name]):
                weights[name] = entry.to_dst(value, shapes[name])
            else:
                wrong.append(f"{entry.src[0]} has shape {list(value.shape)}, not {entry.src_shape(shapes[name])}")
    return weights, missing, wrong


def to_src(state: Weights, keys: KeyMap) -> Weights:
    """Convert weights of latentdiff: the inverse of to_dst."""
    return {src: value for name, entry in keys.items() for src, value in entry.to_src(state[name]).items()}


def shapes_of(network: nn.Module) -> Shapes:
    return {name: parameter.shape for name, parameter in network.named_parameters()}


def _trim(shape: torch.Size) -> list[int]:
    """A shape without trailing dimensions of size 1: a linear layer and a 1x1 convolution have the same."""
    sizes = list(shape)
    while sizes and sizes[-1] == 1:
        sizes.pop()
    return sizes


def _swap_groups(x: Tensor, outer: int, inner: int) -> Tensor:
    """Output channels ordered [outer, inner, d] -> [inner, outer, d]."""
    return x.unflatten(0, (outer, inner, -1)).transpose(0, 1).flatten(0, 2)
