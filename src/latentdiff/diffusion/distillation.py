"""Consistency distillation (Song et al. 2023, alg. 2): a student predicts in one step the end of its teacher's path."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from latentdiff.config import UserError
from latentdiff.diffusion.samplers import Denoise
from latentdiff.diffusion.schedule import Schedule, append_dims


@dataclass(frozen=True)
class DistillConfig:
    """The teacher is the run named by `init`; the student starts from its weights."""

    guidance_scale: float = 2.0  # of the teacher; the student learns its guided output, and is sampled with scale 1
    steps: int = 50  # of the teacher from noise to image; the student's output is compared across one of them

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise UserError(f"distill.steps is {self.steps}; it must be at least 1")


class Teacher:
    """A frozen LatentDiffusion whose guided output a student learns; not in the student's weights and checkpoints."""

    def __init__(self, model: nn.Module, config: DistillConfig) -> None:
        self.model, self.steps = model.requires_grad_(False), config.steps
        self.settings = replace(model.sampling, guidance_scale=config.guidance_scale)
        model.validate_sampling(self.settings)

    def __deepcopy__(self, memo: dict) -> "Teacher":
        return self  # the EMA is a copy of the student, and shares its teacher

    def __call__(self, student: Denoise, batch: dict, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The student's consistency_error [B, C, h, w] on the latents z of a batch."""
        guided = self.model.guided_denoiser(batch, len(z), self.settings)
        return consistency_error(student, guided, z, t, eps, self.model.schedule, self.steps)


def consistency_error(
    student: Denoise, teacher: Denoise, z: Tensor, t: Tensor, eps: Tensor, schedule: Schedule, steps: int
) -> Tensor:
    """The student's x0 at x_t minus its x0 one DDIM step of the teacher later: z, eps [B, ...], t [B] -> [B, ...].

    Where the step ends at the clean image, the target is the teacher's x0 (the boundary condition, which eps, v and
    flow fulfil by construction). The target has no gradient and no EMA (Song & Dhariwal 2024, sec. 3.2).
    """
    x_t = schedule.diffuse(z, eps, t)
    x0 = student(x_t, t)[0]  # first: autocast caches weights cast under no_grad without a gradient (torch 2.6)
    with torch.no_grad():
        x0_teacher, eps_teacher = teacher(x_t, t)
        t_next = t - schedule.T / steps
        s = t_next.clamp(min=0)
        x_s = schedule.diffuse(x0_teacher, eps_teacher, s)
        target = torch.where(append_dims(t_next, x_t) < 0, x0_teacher, student(x_s, s)[0])
    return x0 - target
