"""From conditions to images: a trained diffusion model, its frozen autoencoder and a sampler.

Used by sample.py, evaluate.py, the samples during training and `latentdiff.load_run`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import sr_factor
from latentdiff.conditioning.condition import Fields, output_size
from latentdiff.conditioning.inpainting import MaskedCondition, MaskedConfig
from latentdiff.config import UserError
from latentdiff.data.fields import stack_field
from latentdiff.data.loader import to_device
from latentdiff.diffusion import guidance, samplers
from latentdiff.diffusion.samplers import Denoise
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.tiling import equalize_tile_means
from latentdiff.layers import images_to_float
from latentdiff.load import load_autoencoder, load_diffusion
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import run_dir

Wrap = Callable[[Denoise, Callable[[], Tensor]], Denoise]  # (denoiser, noise) -> denoiser with more guidance


class Pipeline(nn.Module):
    """A diffusion model with its autoencoder; `sample` goes from prompts to images."""

    def __init__(
        self, model: LatentDiffusion, autoencoder: Autoencoder, image_size: tuple[int, int], sr_factor: int = 1,
        conditions: tuple = (),
    ) -> None:  # fmt: skip
        super().__init__()
        self.model, self.autoencoder = model, autoencoder
        self.image_size, self.sr_factor = image_size, sr_factor
        self.conditions = (*conditions, MaskedConfig())  # settings; any run inpaints: known pixels are blended in

    conditioner = property(lambda self: self.model.conditioner)
    unet = property(lambda self: self.model.unet)
    schedule = property(lambda self: self.model.schedule)
    tokenizer = property(lambda self: self.model.conditioner.tokenizer)
    device = property(lambda self: next(self.model.unet.parameters()).device)

    @torch.no_grad()
    def sample(
        self, prompt: str | list[str] = "", *, seed: int = 0, height: int | None = None, width: int | None = None,
        negative_prompt: str | None = None, fields: Fields | None = None, scales: Sequence[float] | None = None,
        **settings: float | int | str,
    ) -> Tensor:  # fmt: skip
        """Sample images.

        Args:
            prompt: one per image; a single one is used for all images.
            seed: image i has seed + i, and is the same in any batch.
            height, width: in pixels; default: the training size, or that of the fields.
            negative_prompt: guidance moves away from it instead of from the empty condition.
            fields: inputs of the other conditions, one item per image: label int [B], boxes [B] of [n, 5] (x0, y0, x1,
                y1 as fractions of the image, class), segmentation int [B, H, W], low_res uint8 [B, h, w, 3], image
                uint8 [B, H, W, 3] and mask [B, H, W], 1 where to inpaint.
            scales: a guidance scale per image.
            settings: fields of SamplingConfig that replace those of the run, such as steps and guidance_scale.

        Returns: images [B, 3, H, W] in [-1, 1].
        """
        fields = {name: stack_field(name, x) for name, x in (fields or {}).items()}
        count = max([len(x) for x in fields.values()] + [1 if isinstance(prompt, str) else len(prompt)])
        captions = {"caption": [prompt] * count if isinstance(prompt, str) else list(prompt)}
        batch = self.prepare(fields | captions)
        negative = (
            self.prepare(fields | {"caption": [negative_prompt] * count}) if negative_prompt is not None else None
        )
        item = {name: x[0] for name, x in fields.items()}
        size = output_size(self.conditions, item, self.sr_factor) or (height, width)
        settings, seeds = replace(self.model.sampling, **settings), [seed + i for i in range(count)]
        wrap = self.blend_known_pixels(batch)
        return self.generate(batch, seeds, settings, size, negative=negative, wrap=wrap, scales=scales)

    def prepare(self, fields: Fields, strict: bool = True) -> dict[str, Tensor]:
        """Fields of a batch -> tensors on the device; strict: refuse captions with more tokens than the model reads."""
        other = {name: stack_field(name, x) for name, x in fields.items() if name != "caption"}
        other = {name: to_device(x, self.device) for name, x in other.items()}
        return other | self.conditioner.prepare(fields, self.device, strict)

    def generate(
        self, batch: dict[str, Tensor], seeds: list[int], settings: SamplingConfig | None = None,
        size: tuple[int | None, int | None] = (None, None), **options,
    ) -> Tensor:  # fmt: skip
        """Prepared fields -> images [B, 3, H, W] in [-1, 1]; size and options: see `latents`."""
        for z in self.latents(batch, seeds, settings, size, **options):
            pass
        return self.decode(z, batch)

    def latents(
        self, batch: dict[str, Tensor], seeds: list[int], settings: SamplingConfig | None = None,
        size: tuple[int | None, int | None] = (None, None), **options,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The predicted z0 [B, C, h, w] after every step, the last one the result.

        size: height and width of the images in pixels; default: the training size. options: see sample_latents.
        """
        settings, wrap = settings or self.model.sampling, options.pop("wrap", None)
        if settings.quantize_denoised:
            wrap = self._quantize_denoised(wrap)
        return sample_latents(self.model, batch, seeds, self.latent_shape(*size), settings, wrap=wrap, **options)

    @torch.no_grad()
    def decode(self, z: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """z -> images in [-1, 1], with the pixels outside the mask of an inpainted image unchanged."""
        x = self.autoencoder.decode(z).clamp(-1, 1)
        if "mask" not in batch:
            return x
        return torch.where(batch["mask"][:, None] > 0, x, images_to_float(batch["image"]).to(x.dtype))

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """[C, h, w] of the latent of an image; default: the training size."""
        factor = self.autoencoder.factor
        sides, unit = (height or self.image_size[0], width or self.image_size[1]), factor * self.unet.config.patch_size
        for name, side in zip(("height", "width"), sides):
            if side < unit or side % unit:
                near = max(1, side // unit) * unit
                raise UserError(f"{name} is {side}; it must be a multiple of {unit}, for example {near}")
        return self.autoencoder.z_channels, sides[0] // factor, sides[1] // factor

    @torch.no_grad()
    def blend_known_pixels(self, batch: dict[str, Tensor]) -> Wrap | None:
        """For `wrap`: inpaint with a model that is not trained for it, by blending in the known latents."""
        if "mask" not in batch or any(isinstance(part, MaskedCondition) for part in self.conditioner.parts):
            return None
        z, factor = self.autoencoder.encode(images_to_float(batch["image"])), self.autoencoder.factor
        known = 1 - F.max_pool2d((batch["mask"] > 0)[:, None].to(z.dtype), factor)  # positions without a masked pixel
        return lambda denoise, noise: guidance.blend_known(denoise, z, known, noise, self.schedule)

    def _quantize_denoised(self, wrap: Wrap | None) -> Wrap:
        def quantized(denoise: Denoise, noise: Callable[[], Tensor]) -> Denoise:
            denoise = guidance.quantize_x0(denoise, self.autoencoder.nearest_codes)
            return denoise if wrap is None else wrap(denoise, noise)

        return quantized


@torch.no_grad()
def sample_latents(
    model: LatentDiffusion, batch: dict[str, Tensor], seeds: list[int], shape: tuple[int, int, int],
    settings: SamplingConfig, *, negative: dict | None = None, init: Tensor | None = None, strength: float = 1.0,
    wrap: Wrap | None = None, scales: Sequence[float] | None = None,
) -> Iterator[Tensor]:  # fmt: skip
    """The predicted z0 [B, *shape] after every step, the last one the result.

    Args:
        batch: prepared fields of B samples.
        seeds: one per sample; each has its own generator on the CPU, so a sample is the same in any batch.
        negative: prepared fields that guidance moves away from; default: the dropped condition.
        init: latents [B, *shape] of image-to-image sampling (Meng et al. 2022): noised to where the last `strength` of
            the steps begin; at 1 nothing of them is left.
        wrap: adds guidance or known pixels to the denoiser: wrap(denoise, noise) -> denoise.
        scales: a guidance scale per sample.
    """
    model.validate_sampling(settings)
    noise, ts = SampleNoise(seeds, shape, next(model.unet.parameters()).device), model.timesteps(settings)
    denoise = model.guided_denoiser(batch, len(seeds), settings, negative, scales)
    x = equalize_tile_means(noise(), settings.tile_size) if settings.tile_size else noise()
    if init is not None:
        x, ts = noised_init(model, init, x, ts, strength)
    if wrap is not None:
        denoise = wrap(denoise, noise)
    yield from samplers.sample(settings.sampler, denoise, x, ts, model.schedule, settings.eta, noise)


def noised_init(
    model: LatentDiffusion, init: Tensor, eps: Tensor, ts: Tensor, strength: float
) -> tuple[Tensor, Tensor]:
    """The noised latents and the remaining timesteps of image-to-image sampling: init, eps [B, ...], ts [steps]."""
    if not 0 < strength <= 1:
        raise UserError(f"strength is {strength:g}; it must be above 0 (little change) and at most 1 (all new)")
    if strength == 1:
        return eps, ts
    ts = ts[-max(1, round(strength * len(ts))) :]
    return model.schedule.diffuse(init, eps, ts[:1].to(init).expand(len(init))), ts


class SampleNoise:
    """Standard normal noise [B, *shape]; each sample has its own CPU generator, which is used in all steps."""

    def __init__(self, seeds: list[int], shape: tuple[int, ...], device: torch.device) -> None:
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.shape, self.device = shape, device

    def __call__(self) -> Tensor:
        return torch.stack([torch.randn(self.shape, generator=g) for g in self.generators]).to(self.device)


def load_pipeline(folder: Path, device: str | torch.device = "cpu") -> Pipeline:
    """The pipeline of a diffusion run, with its EMA weights."""
    model, autoencoder, recipe = load_diffusion(folder)
    return pipeline_of(recipe, model, autoencoder).eval().requires_grad_(False).to(device)


def pipeline_of(recipe: DiffusionRecipe, model: LatentDiffusion, autoencoder: Autoencoder) -> Pipeline:
    return Pipeline(model, autoencoder, recipe.data.image_size, sr_factor(recipe), recipe.conditions)


def load_run(path: str | Path, device: str | torch.device = "cpu") -> Pipeline | Autoencoder:
    """A trained run: a Pipeline, or an Autoencoder if it is a stage-one run. See latentdiff.load_run."""
    folder = run_dir.find_run(path)
    if isinstance(run_dir.read_recipe(folder, DiffusionRecipe, AutoencoderRecipe), AutoencoderRecipe):
        return load_autoencoder(folder).to(device)
    return load_pipeline(folder, device)
