"""The settings of sampling."""

from dataclasses import dataclass

from latentdiff.config import UserError, check_types
from latentdiff.diffusion import samplers


@dataclass(frozen=True)
class SamplingConfig:
    sampler: str = "dpmpp_2m"  # ddpm, ddim, plms, heun, dpmpp_2m, dpmpp_2m_sde, unipc, ipndm or lcm
    steps: int = 20  # network evaluations (twice as many for heun, one more for plms)
    guidance_scale: float = 4.0  # of classifier-free guidance; 1: no guidance
    guidance_interval: tuple[float, ...] = (0.0, 1.0)  # range of sigma / (alpha + sigma) with guidance
    guidance_rescale: float = 0.0  # 0 to 1: how far the contrast is rescaled to that without guidance (Lin et al. 2023)
    eta: float = 0.0  # noise of ddim: 0 is deterministic, 1 is ancestral
    timestep_spacing: str = "trailing"  # trailing, linspace, quadratic, log_snr, karras, or uniform (original release)
    timestep_shift: float = 1.0  # above 1: more steps at high noise, for images larger than in training (SD3)
    tile_size: int = 0  # side of the tiles in latent positions, for latents larger than that; 0: untiled
    tile_overlap: float = 0.25  # fraction of a tile that overlaps the next one
    quantize_denoised: bool = False  # quantize x0 to the codebook at every step (VQ; as in the original release)

    def __post_init__(self) -> None:
        check_types(self, "sampling")
        if self.tile_size < 0 or not 0 <= self.tile_overlap < 1:
            raise UserError(
                f"tile_size is {self.tile_size} and tile_overlap {self.tile_overlap:g}; tile_size must be 0 (untiled) "
                f"or the side of a tile, tile_overlap a fraction of it below 1"
            )
        ends = self.guidance_interval
        if len(ends) != 2 or not 0 <= ends[0] < ends[1] <= 1:
            raise UserError(f"guidance_interval is {ends}; it must be two increasing numbers in 0..1, such as 0.2,0.8")
        samplers.check_sampler(self.sampler, self.eta)

    @property
    def overlap(self) -> int:
        """Overlap of neighbouring tiles in latent positions."""
        return int(self.tile_size * self.tile_overlap)
