"""Averages of the weights whose length is chosen after training (Karras et al. 2024, "Analyzing and improving the
training dynamics of diffusion models", sec. 3 and app. C).

    python -m latentdiff.training.power_ema RUN WIDTH OUTPUT

A run trained with train.ema_widths=0.05,0.1 keeps both averages of every checkpoint in RUN/averages. This combines them
into the average of any WIDTH (the standard deviation of its weights over time, as a share of the training; 0.02 to 0.2
make sense) and leaves a run in OUTPUT that sample.py and evaluate.py take.
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


def exponent(width: float) -> float:
    """gamma of the average with weights t^gamma over 0..t of this relative standard deviation (their eq. 3, 126)."""
    inverse = width**-2
    return np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max().item()


class PostHocEMA:
    """One model per width, trailing behind with a share that depends on the step alone."""

    def __init__(self, model: nn.Module, widths: tuple[float, ...]) -> None:
        self.source = model
        self.models = {f"{width:g}": copy.deepcopy(model).eval().requires_grad_(False) for width in widths}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After the step numbered `step`, counted from 0: shadow <- b·shadow + (1 - b)·weight, b = (1 - 1/n)^(gamma+1)
        (eq. 127 with n = step + 1)."""
        theirs = list(self.source.parameters())
        for width, model in self.models.items():
            kept = (1 - 1 / (step + 1)) ** (exponent(float(width)) + 1)
            ours = list(model.parameters())
            torch._foreach_lerp_(ours, theirs, [1 - kept] * len(ours))
            for mine, other in zip(model.buffers(), self.source.buffers()):
                mine.copy_(other)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The files of a checkpoint."""
        return {f"average_{width}": model.state_dict() for width, model in self.models.items()}

    def load(self, tensors: dict[str, dict[str, Tensor]]) -> None:
        for width, model in self.models.items():
            model.load_state_dict(tensors[f"average_{width}"])

    def keep(self, folder: Path, step: int) -> None:
        """Leave the averages after `step` steps in the run's folder, for good."""
        for width, model in self.models.items():
            (folder / "averages").mkdir(exist_ok=True)
            checkpoint.write_tensors(folder / "averages" / f"{step:08d}-{width}.safetensors", model.state_dict())


def weights(kept: list[tuple[float, int]], wanted: tuple[float, int]) -> np.ndarray:
    """How much of each kept average (width, steps) makes the wanted one: least squares of the profiles (alg. 3).

    Unlike theirs the shares sum to one, so that few kept averages change no weight that stood still.
    """
    gammas, ends = np.array([[exponent(width), step] for width, step in [*kept, wanted]], dtype=np.float64).T

    def product(i, j):  # of two profiles (gamma + 1)·t^gamma / end^(gamma + 1), integrated to the earlier end
        a, b, s, e = gammas[i], gammas[j], np.minimum(ends[i], ends[j]), np.maximum(ends[i], ends[j])
        of_later = np.where(ends[i] >= ends[j], a, b)
        return (a + 1) * (b + 1) / (a + b + 1) * (s / e) ** of_later / e

    i = np.arange(len(kept))
    products = np.pad(product(i[:, None], i[None, :]), (0, 1), constant_values=1.0)
    products[-1, -1] = 0.0  # the multiplier of the sum
    return np.linalg.solve(products, np.append(product(i, np.full(len(i), len(kept))), 1.0))[:-1]


def reconstruct(folder: Path, width: float) -> dict[str, Tensor]:
    """The average of a run that has this width at the last step that was kept."""
    files = sorted((folder / "averages").glob("*.safetensors"))
    kept = [(float(path.stem.split("-")[1]), int(path.stem.split("-")[0])) for path in files]
    if not kept:
        raise UserError(f"run {folder} has kept no averages; train it with train.ema_widths=0.05,0.1")
    shares = weights(kept, (width, max(step for _, step in kept)))
    total: dict[str, Tensor] = {}
    for share, path in zip(shares, files):
        for name, tensor in checkpoint.read_tensors(path).items():
            total[name] = total.get(name, 0) + share * tensor.double() if tensor.is_floating_point() else tensor
    return {name: x.float() if x.is_floating_point() else x for name, x in total.items()}


def _width(text: str) -> float:
    try:
        width = float(text)
    except ValueError:
        width = 0.0
    if not 0 < width < 0.28:
        raise UserError(f"WIDTH is {text}; it must be a number above 0 and below 0.28, for example 0.08")
    return width


def main(words: list[str]) -> None:
    if len(words) != 3:
        raise UserError("python -m latentdiff.training.power_ema RUN WIDTH OUTPUT")
    folder, width, output = run_dir.find_run(words[0]), _width(words[1]), Path(words[2])
    made = reconstruct(folder, width)
    if output.exists():
        raise UserError(f"{output} exists; name a folder that does not")
    shutil.copytree(folder, output, ignore=shutil.ignore_patterns("checkpoints", "averages", "samples", "*.jsonl"))
    checkpoint.write_tensors(output / "model.safetensors", made, {"latentdiff.ema_width": f"{width:g}"})
    print(f"the average of width {width:g}: {output}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
