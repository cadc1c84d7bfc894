"""The measured networks: those of latentdiff, and those of diffusers with the same configuration and weights."""

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.speed import machine
from benchmarks.speed.interleave import ROOT
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.conditioning.cond import Cond
from latentdiff.config import read_recipe
from latentdiff.convert.diffusers import unet2d, vae
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.recipe import DiffusionRecipe


@dataclass(frozen=True)
class Size:
    unet: UNetConfig
    latent: tuple[int, int, int]
    batch: int
    context: tuple[int, int] | None = None  # tokens, width


def recipe_unet(name: str) -> UNetConfig:
    return read_recipe(ROOT / "recipes/diffusion" / name, DiffusionRecipe).unet


@cache
def sizes() -> dict[str, Size]:
    """The measured sizes; a field that diffusers does not support has the nearest supported value in both libraries."""
    demo = replace(recipe_unet("demo.py"), pos_embed=False)  # diffusers has no position embedding in its attention
    # 1/4 width; heads by width, since the U-Net without text of diffusers supports no other choice
    churches = replace(
        recipe_unet("paper/lsun_churches256.py"), channels=48, norm_groups=16, num_heads=1, head_channels=24
    )
    txt2img = recipe_unet("paper/txt2img-1p4B-eval.py")
    return {
        "tiny": Size(UNetConfig(8, (1, 2), 1, (1,), 2, norm_groups=4), (4, 4, 4), 2, (3, 8)),
        "demo": Size(demo, (4, 8, 8), 32, (24, 128)),
        "churches/4": Size(churches, (4, 32, 32), 4),
        "txt2img/4": Size(replace(txt2img, channels=96, norm_groups=32), (4, 32, 32), 2, (77, 320)),
        "cin256": Size(recipe_unet("paper/cin256-v2.py"), (3, 64, 64), 32, (1, 512)),
        "txt2img": Size(txt2img, (4, 32, 32), 32, (77, 1280)),
    }


@torch.no_grad()
def randomize_zeros(module: nn.Module) -> nn.Module:
    """Small random numbers in parameters that start at zero, which would hide the effect of other weights."""
    generators = {device: torch.Generator(device).manual_seed(0) for device in {p.device for p in module.parameters()}}
    for p in module.parameters():
        if not p.is_meta and not p.any():
            p.copy_(0.02 * torch.randn(p.shape, generator=generators[p.device], device=p.device))
    return module


def latentdiff_unet(size: Size) -> UNet:
    """Initialised on the device where it is used: a CPU takes long for large networks."""
    torch.manual_seed(0)
    channels = size.latent[0]
    with machine.device():
        return randomize_zeros(UNet(size.unet, channels, channels, size.context and size.context[1]))


def diffusers_unet(unet: UNet, latent: tuple[int, int, int]) -> nn.Module:
    """UNet2DConditionModel, or UNet2DModel without a context."""
    import diffusers

    options, weights = unet2d.to_diffusers(unet, latent[1:])
    with machine.device():
        model = getattr(diffusers, options["_class_name"]).from_config(options)
    model.load_state_dict(weights)
    return model


def autoencoder(width: float = 1.0) -> Autoencoder:
    """kl-f8 at a fraction of its width."""
    torch.manual_seed(0)
    channels = int(128 * width)
    return Autoencoder(AutoencoderConfig(channels=channels, norm_groups=min(32, channels // 2))).eval()


def diffusers_autoencoder(model: Autoencoder, size: int) -> nn.Module:
    import diffusers

    options, weights = vae.to_diffusers(model, size)
    autoencoder_kl = diffusers.AutoencoderKL.from_config(options)
    autoencoder_kl.load_state_dict(weights)
    return autoencoder_kl.eval()


def inputs(size: Size, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Cond]:
    """z_t, the target, t and the condition; the same for every implementation."""
    generator = torch.Generator().manual_seed(1)
    z_t, target = (torch.randn(size.batch, *size.latent, generator=generator) for _ in range(2))
    t = torch.randint(0, 1000, (size.batch,), generator=generator)
    context = None if size.context is None else torch.randn(size.batch, *size.context, generator=generator).to(device)
    return z_t.to(device), target.to(device), t.to(device), Cond(context=context)
