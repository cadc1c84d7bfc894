"""What sample.py puts around the denoiser: known pixels, a picture to resemble, a classifier."""

from argparse import Namespace
from collections.abc import Callable

from torch import Tensor

from latentdiff.autoencoder import perceptual
from latentdiff.classifier import load_classifier, towards
from latentdiff.conditioning.spatial import to_signed
from latentdiff.config import UserError
from latentdiff.diffusion import guidance
from latentdiff.diffusion.samplers import Denoise
from latentdiff.model import LatentDiffusion
from latentdiff.sampling import inputs
from latentdiff.sampling.image_guidance import resembles, squares


class ExtraGuidance:
    """Reads and checks its options once; a call gives what LatentDiffusion.draw takes as `around` for a batch."""

    def __init__(self, model: LatentDiffusion, options: Namespace) -> None:
        self.model, self.scale, self.classifier_scale = model, options.guide_scale, options.classifier_scale
        self.classifier = load_classifier(options.classifier, model) if options.classifier else None
        if self.classifier is not None and not getattr(options, "class"):
            raise UserError("--classifier goes with --class, which it guides towards")
        self.target = to_signed(inputs.picture("guide", options.guide)[None]) if options.guide else None
        self.distance = squares
        if options.guide_by == "lpips":
            self.distance = perceptual.build(perceptual.LPIPSConfig()).to(next(model.unet.parameters()).device)
        elif options.guide_by != "l2":
            raise UserError(f"--guide-by {options.guide_by}: it must be l2 or lpips")

    def __call__(self, found: dict[str, Tensor], count: int) -> Callable[[Denoise, Callable], Denoise]:
        """found: the fields of a batch of `count` pictures."""
        parts = []
        if self.classifier is not None:
            parts.append(towards(self.classifier, found["label"], self.classifier_scale, self.model))
        if self.target is not None:
            target = self.target.to(next(self.model.unet.parameters()).device).expand(count, -1, -1, -1)
            loss, schedule = resembles(target, self.model.autoencoder.decode, self.distance), self.model.schedule
            parts.append(lambda denoise, noise: guidance.image_guidance(denoise, loss, self.scale, schedule))
        known = self.model.known_pixels(found)

        def around(denoise: Denoise, noise: Callable[[], Tensor]) -> Denoise:
            for part in [*parts, known] if known is not None else parts:
                denoise = part(denoise, noise)
            return denoise

        return around
