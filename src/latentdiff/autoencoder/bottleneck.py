"""The bottleneck between encoder and decoder: a Gaussian posterior (KL), a codebook (VQ), or none (Identity)."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentdiff import rng


@dataclass(frozen=True)
class KLConfig:
    weight: float = 1e-6  # of the KL term; it and the reconstruction loss are sums over an image, as in the paper


@dataclass(frozen=True)
class VQConfig:
    codebook_size: int = 8192  # number of codes
    beta: float = 0.25  # weight of the codebook term if legacy, else of the commitment term; the other has 1
    legacy: bool = True  # beta weights the codebook term, as in the released models; false: the commitment term
    weight: float = 1.0  # of both terms together, beside the mean of the reconstruction loss
    reset_after: int = 1000  # steps without use until a code is replaced by an encoder output; 0: never


@dataclass(frozen=True)
class IdentityConfig:
    pass


def upcast(x: Tensor) -> Tensor:
    """Cast float16 and bfloat16 to float32; keep float32 and float64."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class PassThrough(nn.Module):
    """No bottleneck: the latent is the output of the encoder. The other bottlenecks override its methods."""

    moments = 1  # channels of the encoder's output per latent channel
    reduction = "mean"  # of the reconstruction loss: "mean", or "sum" over each image

    def __init__(self, config: KLConfig | VQConfig | IdentityConfig, channels: int) -> None:
        super().__init__()
        self.config = config

    def split(self, moments: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encoder output [B, moments·C, h, w] -> mean, and logvar or None, each [B, C, h, w]."""
        return upcast(moments), None

    def forward(self, mean: Tensor, logvar: Tensor | None, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The latent [B, C, h, w] for the decoder, and the values that `loss` reads."""
        return mean, {}

    def nearest_codes(self, latent: Tensor) -> Tensor:
        """The latent with every vector replaced by its nearest code; without a codebook, the latent itself."""
        return latent

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted loss of the bottleneck, a scalar."""
        return torch.zeros(())


class Gaussian(PassThrough):
    """KL: the encoder outputs a diagonal Gaussian N(mean, exp(logvar))."""

    moments = 2
    reduction = "sum"

    def split(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        mean, logvar = upcast(moments).chunk(2, dim=1)  # [B, C, h, w] each
        return mean, logvar.clamp(-30, 20)

    def forward(self, mean: Tensor, logvar: Tensor, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """A posterior sample, and "kl" [B], summed over each item."""
        return sample(mean, logvar, noise), {"kl": kl(mean, logvar)}

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        return self.config.weight * terms["kl"].mean()


class Codebook(PassThrough):
    """VQ: every latent vector is replaced by the nearest code of a codebook (van den Oord et al. 2017)."""

    def __init__(self, config: VQConfig, channels: int) -> None:
        super().__init__(config, channels)
        self.embedding = nn.Embedding(config.codebook_size, channels)
        nn.init.uniform_(self.embedding.weight, -1 / config.codebook_size, 1 / config.codebook_size)

    def forward(self, mean: Tensor, logvar: None, noise: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The quantized latent, and "codebook", "commitment" (means), "indices" [B, h, w], "latent" [B, C, h, w]."""
        indices = self.code_indices(mean)
        q = self.look_up(indices)
        terms = {
            "codebook": F.mse_loss(q, mean.detach()),  # gradient for the codes
            "commitment": F.mse_loss(mean, q.detach()),  # gradient for the encoder
            "indices": indices,
            "latent": mean.detach(),
        }
        return straight_through(mean, q), terms

    def nearest_codes(self, latent: Tensor) -> Tensor:
        return straight_through(latent, self.look_up(self.code_indices(latent)))  # in eval mode too, for guidance

    @torch.no_grad()
    def code_indices(self, latent: Tensor) -> Tensor:
        """Indices of the nearest codes by squared distance |z|² + |e|² - 2ze: [B, C, h, w] -> int64 [B, h, w]."""
        e = upcast(self.embedding.weight)
        z = latent.movedim(1, -1).to(e.dtype)  # [B, h, w, C]
        with torch.autocast(z.device.type, enabled=False):  # half precision finds wrong codes
            chunks = z.flatten(0, 2).split(max(1, 2**25 // len(e)))  # at most 128 MiB of distances at a time
            squares = e.square().sum(1)
            nearest = [(c.square().sum(1, keepdim=True) + squares - 2 * c @ e.T).argmin(1) for c in chunks]
        return torch.cat(nearest).view(z.shape[:3])

    def look_up(self, indices: Tensor) -> Tensor:
        return self.embedding(indices).movedim(-1, 1)  # [B, h, w] -> [B, C, h, w]

    def loss(self, terms: dict[str, Tensor]) -> Tensor:
        slow, fast = ("codebook", "commitment") if self.config.legacy else ("commitment", "codebook")
        return self.config.weight * (terms[fast] + self.config.beta * terms[slow])


MODULES = {KLConfig: Gaussian, VQConfig: Codebook, IdentityConfig: PassThrough}


def sample(mean: Tensor, logvar: Tensor | None, noise: Tensor | None) -> Tensor:
    """A posterior sample mean + std·noise (Kingma & Welling 2014, eq. 10); the mean if logvar or noise is None."""
    return mean if logvar is None or noise is None else mean + torch.exp(logvar / 2) * noise


def kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)), summed over each item: [B, ...] -> [B] (Kingma & Welling 2014, app. B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)


def straight_through(z: Tensor, q: Tensor) -> Tensor:
    """The value of q with the gradient of z (Bengio et al. 2013)."""
    return z + (q - z).detach()


# ---- statistics of latents


def moment_sums(mean: Tensor, logvar: Tensor | None) -> Tensor:
    """Per channel the count, sum of means, of squared means and of variances: [B, C, h, w] -> float64 [4, C]."""
    mean = mean.double()
    variance = torch.zeros_like(mean) if logvar is None else logvar.double().exp()
    return torch.stack([x.sum((0, 2, 3)) for x in (torch.ones_like(mean), mean, mean**2, variance)])


def latent_stats(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [C] and variance [C] = Var(mean) + E[exp(logvar)] of latents, from the total of their moment_sums."""
    count, means, squares, variances = sums
    return means / count, squares / count - (means / count) ** 2 + variances / count


# ---- codebook usage


def code_counts(indices: Tensor, size: int) -> Tensor:
    """How often each code occurs in indices [...]: int64 [size]; unlike bincount, without a host-device sync."""
    flat = indices.flatten()
    return torch.zeros(size, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))


def codebook_usage(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts [n] -> fraction of codes in use, and perplexity exp(H), from 1 to n."""
    p = counts.double() / counts.sum().clamp(min=1)
    return (counts > 0).double().mean(), torch.exp(-torch.xlogy(p, p).sum())


@torch.no_grad()
def reset_dead_codes(codebook: Codebook, idle: Tensor, counts: Tensor, latents: Tensor, seed: int, step: int) -> Tensor:
    """Replace codes that were unused for `reset_after` steps by random encoder outputs; no host-device sync.

    Args:
        idle: int [n], steps since the last use; updated in place.
        counts: int [n], uses in this step, summed over all ranks.
        latents: encoder outputs [B, C, h, w]; equal on all ranks, as are seed and step, so that codebooks stay equal.

    Returns: bool [n], the replaced codes; the caller resets their optimizer moments and EMA.
    """
    idle.copy_(torch.where(counts > 0, 0, idle + 1))
    dead = idle >= (codebook.config.reset_after or math.inf)
    weight = codebook.embedding.weight
    pool = latents.movedim(1, -1).flatten(0, -2).to(weight.dtype)  # [N, C]
    key = torch.tensor([rng.key(seed, step, "revive")], device=weight.device)
    picks = (rng.uniform(key, (len(weight),))[0] * len(pool)).long()  # [n]
    dead &= torch.isfinite(pool[picks]).all(1)  # a code that is not finite would stay so
    weight.copy_(torch.where(dead[:, None], pool[picks], weight))
    idle.masked_fill_(dead, 0)
    return dead
