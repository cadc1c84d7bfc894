"""A finished run whose guided drawing another one learns to do in a few steps."""

from dataclasses import replace

from torch import Tensor

from latentdiff.diffusion import distillation
from latentdiff.diffusion.distillation import DistillConfig
from latentdiff.diffusion.samplers import Denoise
from latentdiff.model import LatentDiffusion


class Teacher:
    """Neither trained nor averaged nor saved with the student, who only holds on to it."""

    def __init__(self, model: LatentDiffusion, config: DistillConfig) -> None:
        self.model, self.steps = model.requires_grad_(False), config.steps
        self.settings = replace(model.sampling, guidance_scale=config.guidance_scale)
        model.check(self.settings)

    def __deepcopy__(self, memo: dict) -> "Teacher":
        return self

    def __call__(self, student: Denoise, batch: dict, z: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """The student's error [B, C, h, w] on latents z of a batch, noised by eps to t [B]."""
        guided = self.model.guided(batch, len(z), self.settings, None, None)
        return distillation.error(student, guided, z, t, eps, self.model.schedule, self.steps)
