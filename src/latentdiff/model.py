"""LatentDiffusion: a conditioner, a U-Net and a noise schedule; the training loss and the denoiser.

From a prompt to images, with autoencoder and sampler: sampling/pipeline.py.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from latentdiff.conditioning import cond as conds
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.config import UserError
from latentdiff.diffusion import guidance, loss, parameterization, schedule
from latentdiff.diffusion.loss import LearnedWeighting, ObjectiveConfig
from latentdiff.diffusion.samplers import Denoise, broadcast_t
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import Schedule
from latentdiff.diffusion.tiling import patchwise
from latentdiff.diffusion.unet import UNet
from latentdiff.layers import cast_weights
from latentdiff.training.cuda_graph import CudaGraph


class LatentDiffusion(nn.Module):
    """p(z | conditions) as a denoiser in the latent space of a frozen autoencoder, which is not part of this module."""

    def __init__(self, conditioner: Conditioner, unet: UNet, schedule: Schedule, objective: ObjectiveConfig) -> None:
        super().__init__()
        parameterization.check_parameterization(objective.prediction, schedule)
        self.conditioner, self.unet, self.schedule, self.objective = conditioner, unet, schedule, objective
        learned = objective.weighting == "learned"
        self.learned_weighting = LearnedWeighting(objective, schedule.T) if learned else None
        self.alignment: nn.Module | None = None  # the projection of REPA, if the recipe has `align`
        self.teacher: Callable[..., Tensor] | None = None  # if the recipe has `distill`
        self.sampling = SamplingConfig()  # default settings
        self.weak_model: LatentDiffusion | None = None  # for autoguidance

    # ---- training

    def forward(self, z: Tensor, batch: dict, t: Tensor, eps: Tensor, drops: list[Tensor]) -> Tensor:
        """The loss of each sample (Rombach et al. 2022, eq. 2 and 3).

        Args:
            z, eps: latents and noise [B, C, h, w].
            batch: the prepared fields of the conditions (Conditioner.prepare).
            t: timesteps [B] in 0..T-1.
            drops: bool [B] per condition, True where it is hidden.

        Returns: losses [B].
        """
        if self.teacher is not None:
            student = self.denoiser(self.condition(batch, len(z)), self.sampling)
            return self.weighted(loss.per_sample_loss(self.objective, self.teacher(student, batch, z, t, eps)), t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        target = parameterization.training_target(self.objective.prediction, z, eps, alpha, sigma)
        z_t = self.schedule.diffuse(z, eps, t)
        output, features = self.unet(z_t, t, self.conditioner(batch, drops), return_features=True)
        weight = loss.loss_weight(self.objective, t, self.schedule)
        error = output.to(z.dtype) - target
        losses = self.weighted(loss.per_sample_loss(self.objective, error) * weight.to(error.dtype), t)
        return losses if self.alignment is None else losses + self.alignment(features, batch["features"])

    def weighted(self, losses: Tensor, t: Tensor) -> Tensor:
        """Losses [B] at t [B], with objective.weighting=learned weighted in their gradients."""
        return losses if self.learned_weighting is None else self.learned_weighting(losses, t)

    def sample_timesteps(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) [B] -> t [B] in 0..T-1; integers, or any number with logit_normal."""
        return loss.TIMESTEP_SAMPLERS[self.objective.timestep_sampling](self.objective, u, self.schedule.T)

    # ---- the denoiser

    def condition(self, batch: dict, count: int, drop: bool = False) -> conds.Cond:
        """The condition of `count` samples; with drop the empty one, which replaces it in classifier-free guidance."""
        device = next(self.unet.parameters()).device
        drops = [torch.full((count,), drop and part.dropout > 0, device=device) for part in self.conditioner.parts]
        return self.conditioner(batch, drops)

    def denoiser(self, cond: conds.Cond, settings: SamplingConfig) -> Denoise:
        """denoise(x, t) -> (x0, eps) for a fixed condition."""
        network, cond = self.unet, self.unet.project_kv(cond)
        if settings.tile_size:
            network = patchwise(network, settings.tile_size, settings.overlap)
        predict = partial(network, cond=cond)
        captured = predict if settings.tile_size else CudaGraph(predict)

        def denoise(x: Tensor, t: float | Tensor) -> tuple[Tensor, Tensor]:
            ts = broadcast_t(t, x)
            output = predict(x, t) if settings.tile_size else (predict if torch.is_grad_enabled() else captured)(x, ts)
            alpha, sigma = self.schedule.alpha(ts), self.schedule.sigma(ts)
            return parameterization.to_x0_eps(self.objective.prediction, output, x, alpha, sigma)

        return denoise

    def guided_denoiser(
        self, batch: dict, count: int, settings: SamplingConfig, negative: dict | None = None,
        scales: Sequence[float] | None = None,
    ) -> Denoise:  # fmt: skip
        """The denoiser of a batch with classifier-free guidance or autoguidance as in the settings.

        Args:
            batch: prepared fields of `count` samples.
            negative: the fields that guidance moves away from; default: the dropped condition.
            scales: a guidance scale per sample, instead of settings.guidance_scale.
        """
        cond, scale, rescale = self.condition(batch, count), settings.guidance_scale, settings.guidance_rescale
        if scales is not None:
            scale = torch.tensor(scales, device=next(self.unet.parameters()).device)
        guided = plain = self.denoiser(cond, settings)
        if self.weak_model is not None:
            weak = self.weak_model.denoiser(self.weak_model.condition(batch, count), settings)
            guided = guidance.autoguidance(plain, weak, scale, rescale, self.schedule)
        elif scales is not None or scale != 1:
            uncond = self.condition(batch, count, drop=True) if negative is None else self.condition(negative, count)
            both = self.denoiser(conds.cat([uncond, cond]), settings)
            guided = guidance.classifier_free(both, scale, rescale, self.schedule)
        return guidance.limit_interval(guided, plain, settings.guidance_interval, self.schedule)

    def set_weak_model(self, weak: "LatentDiffusion") -> None:
        """Use autoguidance: guidance moves away from the output of a weaker model of the same condition."""
        if weak.schedule.config != self.schedule.config:
            raise UserError("--autoguide RUN must use the same noise schedule as the sampled run")
        tokenizers = [model.conditioner.tokenizer for model in (weak, self)]
        if len({None if tokenizer is None else tokenizer.to_bytes() for tokenizer in tokenizers}) > 1:
            raise UserError("--autoguide RUN must use the same tokenizer as the sampled run")
        self.__dict__["weak_model"] = weak  # not a submodule: it is no part of the state dict

    def cast_weights(self, dtype: torch.dtype) -> "LatentDiffusion":
        """Cast the weights of conditioner, U-Net and weak model for sampling (layers.cast_weights)."""
        for module in (self.unet, self.conditioner):
            cast_weights(module, dtype)
        if self.weak_model is not None:
            self.weak_model.cast_weights(dtype)
        return self

    def timesteps(self, settings: SamplingConfig) -> Tensor:
        """The timesteps of sampling, from the noisiest: float64 [steps], on the CPU."""
        ts = schedule.sampling_timesteps(settings.steps, self.schedule, settings.timestep_spacing)
        return schedule.shift_timesteps(ts, self.schedule, settings.timestep_shift)

    def validate_sampling(self, settings: SamplingConfig) -> None:
        """Refuse (UserError) settings that this model and its schedule do not support."""
        if settings.guidance_scale != 1 and self.weak_model is None and not self.conditioner.can_drop:
            raise UserError(
                f"guidance_scale is {settings.guidance_scale:g}, but no condition was dropped in training, so there is "
                f"no unconditional output to guide away from; it must be 1"
            )
        self.timesteps(settings)
