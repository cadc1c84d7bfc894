"""What holds the latent together: a Gaussian posterior (KL), a codebook (VQ), or nothing (Identity)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff import rng


@dataclass(frozen=True)
class KLConfig:
    weight: float = 1e-6  # of the KL term, which is summed over a picture as the reconstruction loss is (the paper's)


@dataclass(frozen=True)
class VQConfig:
    codebook_size: int = 8192  # how many codes
    beta: float = 0.25  # of the slower of the two terms: the codebook's if legacy, else the commitment's
    legacy: bool = True  # beta on the codebook term, as the released models were trained; false: on the commitment
    weight: float = 1.0  # of both terms together, beside the mean of the reconstruction loss
    reset_after: int = 1000  # steps without use until a code is replaced by an encoder output; 0: never


@dataclass(frozen=True)
class IdentityConfig:
    pass


def upcast(x: Tensor) -> Tensor:
    """Half types in float32; float32 and float64 as they are."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class Gaussian(nn.Module):
    """KL: the encoder gives a diagonal Gaussian, N(mean, exp(logvar))."""

    moments = 2  # channels that the encoder gives per latent channel
    reduction = "sum"  # of the reconstruction loss that belongs to the weight (see KL.weight)

    def __init__(self, config: KLConfig, channels: int) -> None:
        super().__init__()
        self.config = config

    def split(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 2C, h, w] -> mean, logvar, each [B, C, h, w]; the log-variance is held between -30 and 20."""
        mean, logvar = upcast(moments).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """A posterior sample, and "kl" [B], summed over each item."""
        return sample(mean, logvar, noise), {"kl": kl(mean, logvar)}

    def quantise(self, latent: Tensor) -> Tensor:
        return latent

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        return self.config.weight * terms["kl"].mean()


class Codebook(nn.Module):
    """VQ: every latent vector becomes the nearest of a codebook's (van den Oord et al. 2017)."""

    moments = 1
    reduction = "mean"

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.codebook_size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def split(self, moments: Tensor) -> tuple[Tensor, None]:
        return upcast(moments), None

    def forward(self, mean: Tensor, logvar: None, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The quantised latent, and "codebook", "commitment" (means), "codes" [B, h, w], "latent" [B, C, h, w]."""
        codes = self.codes(mean)
        q = self.look_up(codes)
        terms = {
            "codebook": F.mse_loss(q, mean.detach()),  # moves the codes
            "commitment": F.mse_loss(mean, q.detach()),  # moves the encoder
            "codes": codes,
            "latent": mean.detach(),
        }
        return straight_through(mean, q), terms

    def quantise(self, latent: Tensor) -> Tensor:
        """Nearest codes with the gradient of the identity (straight through), in eval as well: guidance needs it."""
        return straight_through(latent, self.look_up(self.codes(latent)))

    @torch.no_grad()
    def codes(self, latent: Tensor) -> Tensor:
        """[B, C, h, w] -> int64 [B, h, w], by squared distance, |z|² + |e|² - 2ze, never in a half type."""
        e = upcast(self.embedding.weight)
        z = latent.movedim(1, -1).to(e.dtype)  # [B, h, w, C]
        with torch.autocast(z.device.type, enabled=False):
            parts = z.flatten(0, 2).split(max(1, 2**25 // len(e)))  # at most 128 MiB of distances at a time
            squares = e.square().sum(1)
            nearest = [(p.square().sum(1, keepdim=True) + squares - 2 * p @ e.T).argmin(1) for p in parts]
        return torch.cat(nearest).view(z.shape[:3])

    def look_up(self, codes: Tensor) -> Tensor:
        return self.embedding(codes).movedim(-1, 1)  # [B, h, w] -> [B, C, h, w]

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        slow, fast = ("codebook", "commitment") if self.config.legacy else ("commitment", "codebook")
        return self.config.weight * (terms[fast] + self.config.beta * terms[slow])


class PassThrough(nn.Module):
    """Identity: the latent is whatever the encoder gives."""

    moments = 1
    reduction = "mean"

    def __init__(self, config: IdentityConfig, channels: int) -> None:
        super().__init__()

    def split(self, moments: Tensor) -> tuple[Tensor, None]:
        return upcast(moments), None

    def forward(self, mean: Tensor, logvar: None, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        return mean, {}

    def quantise(self, latent: Tensor) -> Tensor:
        return latent

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        return torch.zeros(())


MODULES = {KLConfig: Gaussian, VQConfig: Codebook, IdentityConfig: PassThrough}


def sample(mean: Tensor, logvar: Tensor | None, noise: Tensor | None) -> Tensor:
    """mean + std·noise (Kingma & Welling 2014, eq. 10); the mean where either is missing."""
    return mean if logvar is None or noise is None else mean + torch.exp(logvar / 2) * noise


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)), summed over each item: [B, ...] -> [B] (Kingma & Welling 2014, app. B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q with the gradient of z (Bengio et al. 2013)."""
    return z + (q - z).detach()


# ---- the health of a codebook


def count(codes: Tensor, size: int) -> Tensor:
    """Codes of any shape -> how often each occurs, int64 [size], without waiting for the device as bincount does."""
    flat = codes.flatten()
    return torch.zeros(size, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))


def usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """How often each code was used [n] -> the share of codes in use, and the perplexity exp(H), 1 to n."""
    p = counts.double() / counts.sum().clamp(min=1)
    return (counts > 0).double().mean(), torch.exp(-torch.xlogy(p, p).sum())


@torch.no_grad()
def revive(codebook: Codebook, idle: Tensor, counts: Tensor, latents: Tensor, seed: int, step: int) -> Tensor:
    """Replace codes that were idle for `reset_after` steps by encoder outputs; returns which rows, bool [n].

    idle: int [n], steps without use, brought up to date here; the caller keeps it. counts: [n], of all ranks together.
    latents: [B, C, h, w], the same on all ranks. Which latent goes where depends on (seed, step) alone, so the ranks
    stay equal. The caller resets the moments and averages of the rows. Nothing here waits for the device.
    """
    idle.copy_(torch.where(counts > 0, 0, idle + 1))
    dead = idle >= (codebook.config.reset_after or math.inf)
    weight = codebook.embedding.weight
    pool = latents.movedim(1, -1).flatten(0, -2).to(weight.dtype)  # [N, C]
    key = torch.tensor([rng.key(seed, step, "revive")], device=weight.device)
    picks = (rng.uniform(key, (len(weight),))[0] * len(pool)).long()
    dead &= torch.isfinite(pool[picks]).all(1)  # what a broken picture gave would stay in the codebook for good
    weight.copy_(torch.where(dead[:, None], pool[picks], weight))
    idle.masked_fill_(dead, 0)
    return dead
