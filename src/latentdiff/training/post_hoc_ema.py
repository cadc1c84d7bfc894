"""Post-hoc EMA: choose the length of the EMA after training (Karras et al. 2024, EDM2, sec. 3 and app. C).

    python -m latentdiff.training.post_hoc_ema RUN WIDTH OUTPUT

A run trained with train.ema_widths=0.05,0.1 keeps the EMAs of both widths at every checkpoint in RUN/ema_snapshots.
This combines them into the EMA of any WIDTH and writes a run to OUTPUT, for sample.py and evaluate.py. The width is the
standard deviation of the averaging weights over time, as a fraction of the training; 0.02 to 0.2 is useful.
"""

import copy
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.training import checkpoint, run_dir


def gamma_of(width: float) -> float:
    """The exponent gamma of the averaging weights t^gamma that have this relative standard deviation (eq. 3, 126)."""
    inverse = width**-2
    return np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max().item()


class PostHocEMA:
    """One power-function EMA of `model` per width; its decay depends only on the step."""

    def __init__(self, model: nn.Module, widths: tuple[float, ...]) -> None:
        self.source = model
        self.models = {f"{width:g}": copy.deepcopy(model).eval().requires_grad_(False) for width in widths}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update after the step numbered `step`, from 0: ema <- b·ema + (1 - b)·weight with b = (1 - 1/n)^(gamma + 1),
        n = step + 1 (eq. 127)."""
        params = list(self.source.parameters())
        for width, model in self.models.items():
            decay = (1 - 1 / (step + 1)) ** (gamma_of(float(width)) + 1)
            ema_params = list(model.parameters())
            torch._foreach_lerp_(ema_params, params, [1 - decay] * len(ema_params))
            for ema_buffer, buffer in zip(model.buffers(), self.source.buffers()):
                ema_buffer.copy_(buffer)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """File name in a checkpoint -> tensors."""
        return {f"ema_{width}": model.state_dict() for width, model in self.models.items()}

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of tensors()."""
        for width, model in self.models.items():
            model.load_state_dict(tensors[f"ema_{width}"])

    def save(self, folder: Path, step: int) -> None:
        """Write the EMAs after `step` steps to the run's ema_snapshots, which are never deleted."""
        for width, model in self.models.items():
            (folder / "ema_snapshots").mkdir(exist_ok=True)
            checkpoint.write_tensors(folder / "ema_snapshots" / f"{step:08d}-{width}.safetensors", model.state_dict())


def solve_weights(snapshots: list[tuple[float, int]], target: tuple[float, int]) -> np.ndarray:
    """The weights of snapshots (width, step) in the least-squares approximation of the target (width, step) (alg. 3).

    Unlike in the paper, the weights sum to one, so that a parameter that did not change keeps its value.
    """
    gammas, ends = np.array([[gamma_of(width), step] for width, step in [*snapshots, target]], dtype=np.float64).T

    def inner_product(i, j):  # of two profiles (gamma + 1)·t^gamma / end^(gamma + 1), integrated to the earlier end
        a, b, s, e = gammas[i], gammas[j], np.minimum(ends[i], ends[j]), np.maximum(ends[i], ends[j])
        later = np.where(ends[i] >= ends[j], a, b)
        return (a + 1) * (b + 1) / (a + b + 1) * (s / e) ** later / e

    i = np.arange(len(snapshots))
    gram = np.pad(inner_product(i[:, None], i[None, :]), (0, 1), constant_values=1.0)
    gram[-1, -1] = 0.0  # the Lagrange multiplier of the constraint on the sum
    return np.linalg.solve(gram, np.append(inner_product(i, np.full(len(i), len(snapshots))), 1.0))[:-1]


def reconstruct(folder: Path, width: float) -> dict[str, Tensor]:
    """The EMA of this width at the run's last snapshot."""
    paths = sorted((folder / "ema_snapshots").glob("*.safetensors"))
    snapshots = [(float(path.stem.split("-")[1]), int(path.stem.split("-")[0])) for path in paths]
    if not snapshots:
        raise UserError(f"run {folder} has no ema_snapshots; train it with train.ema_widths=0.05,0.1")
    weights = solve_weights(snapshots, (width, max(step for _, step in snapshots)))
    total: dict[str, Tensor] = {}
    for weight, path in zip(weights, paths):
        for name, tensor in checkpoint.read_tensors(path).items():
            total[name] = total.get(name, 0) + weight * tensor.double() if tensor.is_floating_point() else tensor
    return {name: x.float() if x.is_floating_point() else x for name, x in total.items()}


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < 0.28:
        raise UserError(f"WIDTH is {text}; it must be a number above 0 and below 0.28, for example 0.08")
    return width


def main(argv: list[str]) -> None:
    if len(argv) != 3:
        raise UserError("usage: python -m latentdiff.training.post_hoc_ema RUN WIDTH OUTPUT")
    folder, width, output = run_dir.find_run(argv[0]), _width(argv[1]), Path(argv[2])
    tensors = reconstruct(folder, width)
    if output.exists():
        raise UserError(f"OUTPUT is {output}, which exists already; give a new folder")
    ignore = shutil.ignore_patterns("checkpoints", "ema_snapshots", "samples", "*.jsonl")
    shutil.copytree(folder, output, ignore=ignore)
    checkpoint.write_tensors(output / "model.safetensors", tensors, {"latentdiff.ema_width": f"{width:g}"})
    print(f"EMA of width {width:g}: {output}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
