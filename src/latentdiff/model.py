"""LatentDiffusion: a conditioner, a U-Net and a schedule; the training loss, and drawing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.conditioning import cond as conds
from latentdiff.conditioning.conditioner import Conditioner
from latentdiff.conditioning.spatial import MaskedCondition, to_signed
from latentdiff.config import UserError
from latentdiff.data.fields import stack_field
from latentdiff.diffusion import guidance, loss, parameterization, samplers
from latentdiff.diffusion.loss import ObjectiveConfig, Uncertainty
from latentdiff.diffusion.schedule import Schedule, shifted, timesteps
from latentdiff.diffusion.tiling import level, patchwise
from latentdiff.diffusion.unet import UNet
from latentdiff.layers import cast_weights
from latentdiff.training.cuda_graph import CudaGraph


@dataclass(frozen=True)
class SamplingConfig:
    sampler: str = "dpmpp_2m"  # ddpm, ddim, plms, heun, dpmpp_2m, dpmpp_2m_sde, unipc, ipndm or lcm
    steps: int = 20  # network evaluations (twice as many for heun, one more for plms)
    guidance_scale: float = 4.0  # of classifier-free guidance; 1 is none
    guidance_interval: tuple[float, ...] = (0.0, 1.0)  # of sigma / (alpha + sigma): where guidance works
    guidance_rescale: float = 0.0  # 0 to 1: how far the guided picture's contrast is pulled back (Lin et al. 2023)
    eta: float = 0.0  # noise of ddim: 0 is deterministic, 1 is ancestral
    timestep_spacing: str = (
        "trailing"  # of the timesteps: trailing, linspace, quadratic, log_snr, karras, or uniform (original)
    )
    timestep_shift: float = (
        1.0  # more steps where the noise is high, for pictures larger than in training (Esser et al. 2024)
    )
    tile_size: int = 0  # larger latents are drawn in tiles of this side, in places of the latent; 0: in one piece
    tile_overlap: float = 0.25  # share of a tile that it has in common with the next
    quantize_denoised: bool = False  # every guess is made of the codebook's codes (VQ; as in the original)

    @property
    def common(self) -> int:
        """Places that a tile has in common with the next."""
        return int(self.tile_size * self.tile_overlap)


class LatentDiffusion(nn.Module):
    """p(z | conditions) as a denoiser in the latent space of a frozen autoencoder.

    The autoencoder and the tokenizer are attached to a loaded run (`load_run`); training leaves them outside, so that
    optimiser, EMA and DDP see what trains and nothing else.
    """

    def __init__(self, conditioner: Conditioner, unet: UNet, schedule: Schedule, aim: ObjectiveConfig) -> None:
        super().__init__()
        parameterization.check(aim.prediction, schedule)
        self.conditioner, self.unet, self.schedule, self.objective = conditioner, unet, schedule, aim
        self.uncertainty = Uncertainty(aim, schedule.T) if aim.weighting == "uncertainty" else None
        self.autoencoder, self.tokenizer, self.sampling, self.scale = None, None, SamplingConfig(), 1
        self.alignment: nn.Module | None = None  # REPA's projection, where the recipe has `align`
        self.guide: LatentDiffusion | None = None
        self.teacher: Callable[..., Tensor] | None = None  # where the recipe has `distill`

    # ---- training

    def forward(self, z: Tensor, batch: dict, t: Tensor, eps: Tensor, drops: list[Tensor]) -> Tensor:
        """The loss of each sample (Rombach et al. 2022, eq. 2 and 3): z, eps [B, C, h, w], t [B] -> [B]."""
        if self.teacher is not None:
            student = self.denoiser(self.condition(batch, len(z)), self.sampling)
            return self.weighed(loss.distance(self.objective, self.teacher(student, batch, z, t, eps)), t)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        target = parameterization.target(self.objective.prediction, z, eps, alpha, sigma)
        z_t, middle = self.schedule.diffuse(z, eps, t), None if self.alignment is None else []
        error = self.unet(z_t, t, self.conditioner(batch, drops), middle).to(z.dtype) - target
        weight = loss.weight(self.objective, t, self.schedule).to(error.dtype)
        losses = self.weighed(loss.distance(self.objective, error) * weight, t)
        return losses if self.alignment is None else losses + self.alignment(middle[0], batch["features"])

    def weighed(self, losses: Tensor, t: Tensor) -> Tensor:
        """Losses [B] at t [B], each teaching as much as is learned for its t (weighting=uncertainty), or as it is."""
        return losses if self.uncertainty is None else self.uncertainty(losses, t)

    def draw_timesteps(self, u: Tensor) -> Tensor:
        """Uniform numbers in [0, 1) [B] -> t [B], whole (uniform, importance) or any in 0..T-1 (logit_normal)."""
        return loss.DRAWS[self.objective.timestep_sampling](self.objective, u, self.schedule.T)

    def draw_drops(self, keys: Tensor) -> list[Tensor]:
        """Per part, which samples train without it: bool [B] each, drawn independently."""
        return self.conditioner.draw_drops(keys)

    # ---- drawing

    def denoiser(self, cond: conds.Cond, settings: SamplingConfig) -> guidance.Denoise:
        """denoise(x, t) -> (x0, eps) with the condition bound."""
        network, cond = self.unet, self.unet.hold(cond)
        if settings.tile_size:
            network = patchwise(network, settings.tile_size, settings.common)
        predict = partial(network, cond=cond)
        replayed = predict if settings.tile_size else CudaGraph(predict)

        def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            predicted = (predict if torch.is_grad_enabled() else replayed)(x, t)
            return parameterization.solve(self.objective.prediction, predicted, x, alpha, sigma)

        return denoise

    def condition(self, batch: dict, count: int, hide: bool = False) -> conds.Cond:
        """The condition of `count` samples; hide: without what training has learned to do without."""
        device = next(self.unet.parameters()).device
        drops = [torch.full((count,), hide and part.dropout > 0, device=device) for part in self.conditioner.parts]
        return self.conditioner(batch, drops)

    def guided(
        self, batch: dict, count: int, settings: SamplingConfig, negative: dict | None, scales: Sequence[float] | None
    ) -> guidance.Denoise:
        """The denoiser of a batch of `count`, guided as the settings say; see `draw`."""
        cond, scale, rescale = self.condition(batch, count), settings.guidance_scale, settings.guidance_rescale
        if scales is not None:
            scale = torch.tensor(scales, device=next(self.unet.parameters()).device)
        plain = made = self.denoiser(cond, settings)
        if self.guide is not None:
            bad = self.guide.denoiser(self.guide.condition(batch, count), settings)
            made = guidance.autoguidance(plain, bad, scale, rescale, self.schedule)
        elif scales is not None or scale != 1:
            other = self.condition(batch, count, hide=True) if negative is None else self.condition(negative, count)
            both = self.denoiser(conds.cat([other, cond]), settings)
            made = guidance.classifier_free(both, scale, rescale, self.schedule)
        made = guidance.within(made, plain, settings.guidance_interval, self.schedule)
        snap = settings.quantize_denoised and self.autoencoder is not None  # it is not at hand while training
        return guidance.quantized(made, self.autoencoder.quantise) if snap else made

    def cast_weights(self, dtype: torch.dtype) -> "LatentDiffusion":
        """What draws, in the type it is drawn in (layers.lowered).

        The autoencoder's weights stay: autocast casts them once for each batch of pictures, not at every step.
        """
        for part in (self.unet, self.conditioner, *([] if self.guide is None else [self.guide.cast_weights(dtype)])):
            cast_weights(part, dtype)
        return self

    def guide_by(self, worse: "LatentDiffusion") -> None:
        """Autoguidance: guidance_scale leads away from what this other model says of the same condition."""
        if worse.schedule.config != self.schedule.config:
            raise UserError("the run to guide away from has another schedule; it must have the same")
        theirs, ours = (None if m.tokenizer is None else m.tokenizer.to_bytes() for m in (worse, self))
        if theirs != ours:
            raise UserError("the run to guide away from has another tokenizer; it must have the same")
        self.guide = worse

    def check(self, settings: SamplingConfig) -> None:
        """Refuse settings that this model cannot draw with, before anything is drawn."""
        if settings.guidance_scale != 1 and self.guide is None and not self.conditioner.can_hide:
            raise UserError(
                f"guidance_scale is {settings.guidance_scale:g}, but no condition was dropped in training, so there is "
                f"nothing to guide away from; guidance_scale must be 1"
            )
        if settings.tile_size < 0 or not 0 <= settings.tile_overlap < 1:
            raise UserError(
                f"tile is {settings.tile_size} with overlap {settings.tile_overlap:g}; tile must be 0 (in one piece) or the side "
                f"of a tile, overlap a share of it below 1"
            )
        ends = settings.guidance_interval
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
            raise UserError(f"guidance_interval is {ends}; it must be two rising shares of noise, for example 0.2,0.8")
        samplers.check(settings.sampler, settings.eta)
        self.grid(settings)

    def grid(self, settings: SamplingConfig) -> Tensor:
        """The timesteps that drawing visits, from the noisiest down: float64 [steps], on the CPU."""
        return shifted(
            timesteps(settings.steps, self.schedule, settings.timestep_spacing), self.schedule, settings.timestep_shift
        )

    @torch.no_grad()
    def draw(
        self,
        batch: dict,
        seeds: list[int],
        shape: tuple[int, int, int],
        settings: SamplingConfig,
        negative: dict | None = None,
        start: Tensor | None = None,
        strength: float = 1.0,
        around: Callable[[guidance.Denoise, "Noise"], guidance.Denoise] | None = None,
        scales: Sequence[float] | None = None,
    ) -> Iterator[Tensor]:
        """Latents z0 [B, *shape], one guess per sampling step, the last one the result.

        batch holds the conditions' fields for B samples; seeds name the pictures: each has a generator of its own on
        the CPU, so a picture is the same in any batch. negative replaces what guidance moves away from (default:
        hidden). start [B, *shape] is drawn over: noised as far as the last `strength` of the steps undo (Meng et al.
        2022); at 1 nothing of it is left. around(denoise, noise) puts more guidance, or known pixels, around the
        denoiser. scales: a guidance scale for each sample, in place of the settings' one.
        """
        self.check(settings)
        noise, ts = Noise(seeds, shape, next(self.unet.parameters()).device), self.grid(settings)
        denoise = self.guided(batch, len(seeds), settings, negative, scales)
        x = level(noise(), settings.tile_size) if settings.tile_size else noise()
        if start is not None:
            x, ts = self.noised(start, x, ts, strength)
        if around is not None:
            denoise = around(denoise, noise)
        yield from samplers.sample(settings.sampler, denoise, x, ts, self.schedule, settings.eta, noise)

    def noised(self, start: Tensor, eps: Tensor, ts: Tensor, strength: float) -> tuple[Tensor, Tensor]:
        """Where drawing over `start` begins, and the steps that are left: start, eps [B, ...], ts [steps]."""
        if not 0 < strength <= 1:
            raise UserError(f"strength is {strength:g}; it must be above 0 (hardly a change) and at most 1 (all new)")
        if strength == 1:
            return eps, ts
        ts = ts[-max(1, round(strength * len(ts))) :]
        return self.schedule.diffuse(start, eps, ts[:1].to(start).expand(len(start))), ts

    @torch.no_grad()
    def sample(
        self, prompt: str | list[str] = "", *, seed: int = 0, height: int | None = None, width: int | None = None,
        negative_prompt: str | None = None, fields: dict | None = None, scales: Sequence[float] | None = None,
        **settings: float | int | str,
    ) -> Tensor:  # fmt: skip
        """Pictures [B, 3, H, W] in [-1, 1], one per prompt; picture i has seed + i. height and width are in pixels.

        fields: what conditions other than text read, one item per picture: label int [B], boxes [B] of [n, 5] (x0, y0,
        x1, y1 in shares of the picture, class), segmentation int [B, H, W], low_res uint8 [B, h, w, 3], image uint8
        [B, H, W, 3] and mask [B, H, W], 1 where to fill. settings override the run's own: steps, sampler,
        guidance_scale, guidance_rescale, guidance_interval, eta, spacing; scales: a guidance scale for each picture.
        """
        given = {name: stack_field(name, x) for name, x in (fields or {}).items()}
        count = max([len(x) for x in given.values()] + [1 if isinstance(prompt, str) else len(prompt)])
        prompts = [prompt] * count if isinstance(prompt, str) else list(prompt)
        batch = self.fields(given) | self.tokens(prompts)
        negative = None if negative_prompt is None else batch | self.tokens([negative_prompt] * count)
        seeds = [seed + i for i in range(count)]
        shape = self.latent_shape(*(self.asked(batch) or (height, width)))
        around = self.known_pixels(batch)
        for z in self.draw(
            batch, seeds, shape, replace(self.sampling, **settings), negative, None, 1.0, around, scales
        ):
            pass
        return self.finished(self.autoencoder.decode(z), batch)

    def fields(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """The fields of a batch on the model's device."""
        device = next(self.unet.parameters()).device
        return {name: x.to(device) for name, x in given.items()}

    def asked(self, batch: dict) -> tuple[int, int] | None:
        """Height and width of the pictures that the fields ask for, if any does."""
        for name, scale in (("image", 1), ("segmentation", 1), ("low_res", self.scale)):
            if name in batch:
                return scale * batch[name].shape[1], scale * batch[name].shape[2]
        return None

    def known_pixels(self, batch: dict) -> Callable | None:
        """For `draw`: blend in what is known of a masked picture, in a run that has not learned to fill."""
        if "mask" not in batch or any(isinstance(part, MaskedCondition) for part in self.conditioner.parts):
            return None
        z, factor = self.autoencoder.encode(to_signed(batch["image"])), self.autoencoder.factor
        known = 1 - F.max_pool2d((batch["mask"] > 0)[:, None].to(z.dtype), factor)  # cells that are known as a whole
        return lambda denoise, noise: guidance.blend_known(denoise, z, known, noise, self.schedule)

    def finished(self, x: Tensor, batch: dict) -> Tensor:
        """Decoded pictures within [-1, 1], with the known pixels of a masked picture as they were."""
        x = x.clamp(-1, 1)
        if "mask" not in batch:
            return x
        return torch.where(batch["mask"][:, None] > 0, x, to_signed(batch["image"]).to(x.dtype))

    def tokens(self, captions: list[str]) -> dict:
        """The text field of a batch; empty for a run without text."""
        if self.tokenizer is None:
            return {}
        device = next(self.unet.parameters()).device
        return {"tokens": self.tokenizer.encode(captions, strict=True).to(device)}

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """[C, h, w] of the latent of a picture; the training size where none is given."""
        factor = self.autoencoder.factor
        sides, unit = (height or self.size[0], width or self.size[1]), factor * self.unet.config.patch
        for name, side in zip(("height", "width"), sides):
            if side < unit or side % unit:
                near = max(1, side // unit) * unit
                raise UserError(f"{name} is {side}; it must be a multiple of {unit}, for example {near}")
        return self.autoencoder.z_channels, sides[0] // factor, sides[1] // factor


class Noise:
    """Standard normal noise [B, *shape], every sample from a CPU generator of its own, kept through all steps."""

    def __init__(self, seeds: list[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)
