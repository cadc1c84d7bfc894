"""Outputs of the original release (tests/fixtures/vectors), and the rule that generates the weights.

A case is <name>.json, which describes what was run, and <name>.safetensors with in.*, out.f32.* and out.f64.*. The
weights are not stored: each is noise that depends only on its name and shape.
"""

import hashlib
import json
import math
import re
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).resolve().parent.parent / "fixtures" / "vectors"
EMBEDDING = re.compile(r"(^|\.)(embedding|token_emb|label_emb|emb)\.weight$")
LPIPS_HEAD = re.compile(r"(^|\.)lin\d\.model\.")
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-9}  # relative to the largest value
PREFIX = {torch.float32: "out.f32.", torch.float64: "out.f64."}


def case(name: str) -> tuple[dict, dict[str, Tensor]]:
    """The description of a case, and its tensors: in.<name>, out.f32.<name>, out.f64.<name>."""
    return json.loads((FOLDER / f"{name}.json").read_text()), load_file(FOLDER / f"{name}.safetensors")


def inputs(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The inputs of a case by name, floats in `dtype`."""
    tensors = {key[3:]: value for key, value in tensors.items() if key.startswith("in.")}
    return {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}


def outputs(tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The original's outputs in this precision by name."""
    prefix = PREFIX[dtype]
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def weights(meta: dict, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Every parameter of a case by its original name; the float32 values are compared with the stored digest."""
    values = {key: noise_of(key, shape) for key, shape in meta["init"]["keys"].items()}
    assert digest(values.items()) == meta["init"]["sha256"], f"{meta['case']}: these are not the original's weights"
    return {key: torch.from_numpy(value).to(dtype) for key, value in values.items()}


def noise_of(key: str, shape: Iterable[int]) -> np.ndarray:
    """The value of the parameter `key`: computed in float64, rounded once to float32."""
    shape = tuple(shape)
    noise = np.asarray(np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape))
    if len(shape) < 2:
        value = 1 + 0.1 * noise if len(shape) == 1 and key.endswith(".weight") else 0.1 * noise
    elif EMBEDDING.search(key):
        value = noise
    else:
        value = noise / math.sqrt(math.prod(shape[1:]))  # unit gain per output
        value = np.abs(value) if LPIPS_HEAD.search(key) else value
    return np.asarray(value, dtype=np.float32)


def normal(case: str, name: str, shape: Iterable[int]) -> np.ndarray:
    """A generated input of a case: standard normal noise, rounded once to float32."""
    state = np.random.RandomState(zlib.crc32(f"{case}/{name}".encode()))
    return np.asarray(state.standard_normal(tuple(shape)), dtype=np.float32)


def digest(items: Iterable[tuple[str, np.ndarray]]) -> str:
    """sha256 over name and little-endian float32 bytes, in the order of the names."""
    total = hashlib.sha256()
    for key, value in sorted(items, key=lambda item: item[0]):
        total.update(key.encode())
        total.update(np.ascontiguousarray(value, dtype="<f4").tobytes())
    return total.hexdigest()


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, divided by the largest expected value."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    largest = expected.double().abs().max().item()
    difference = (actual.detach().double() - expected.double()).abs().max().item()
    return difference / largest if largest else difference


def close(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> bool:
    """Whether the error is at most `tolerance`; default: that of the dtype of `expected`."""
    return error(actual, expected) <= (TOLERANCE[expected.dtype] if tolerance is None else tolerance)
