"""Consistency distillation (Song et al. 2023, alg. 2): a student that names the end of its teacher's path at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.diffusion.samplers import Denoise
from latentdiff.diffusion.schedule import Schedule, column


@dataclass(frozen=True)
class DistillConfig:
    """The teacher is the run that `init` names; the student starts from its weights."""

    guidance_scale: float = 2.0  # the teacher's; the student learns the guided path and is drawn from with 1
    steps: int = 50  # of the teacher from noise to picture; the student agrees with itself over one of them

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"distill.steps is {self.steps}; it must be at least 1")


def error(
    student: Denoise, teacher: Denoise, z: Tensor, t: Tensor, eps: Tensor, schedule: Schedule, steps: int
) -> Tensor:
    """What the student says of x_t less what it says one DDIM step of the teacher further on: z [B, ...], t [B].

    Both are x0. Where the step ends at the clean image, that is what is to be said (the boundary condition; eps, v and
    flow have it built in). The target has no gradient and no average of its own (Song & Dhariwal 2024, sec. 3.2).
    """
    x = schedule.diffuse(z, eps, t)
    said = student(x, t)[0]  # first: half weights that autocast keeps from below would have no gradient (torch 2.6)
    with torch.no_grad():
        x0, direction = teacher(x, t)
        there = t - schedule.T / steps
        s = there.clamp(min=0)
        nearer = schedule.diffuse(x0, direction, s)
        target = torch.where(column(there, x) < 0, x0, student(nearer, s)[0])
    return said - target
