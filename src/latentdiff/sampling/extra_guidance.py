"""Guidance that sample.py adds to the denoiser: by a classifier, by an image, and known pixels of inpainting."""

from argparse import Namespace
from collections.abc import Callable

from torch import Tensor

from latentdiff.autoencoder import perceptual
from latentdiff.conditioning.condition import read_image
from latentdiff.config import UserError
from latentdiff.diffusion import guidance
from latentdiff.diffusion.guidance import image_similarity_loss, squared_error
from latentdiff.diffusion.samplers import Denoise
from latentdiff.layers import images_to_float
from latentdiff.load import load_classifier
from latentdiff.sampling.pipeline import Pipeline, Wrap


class ExtraGuidance:
    """Reads its options once; a call returns the `wrap` argument of Pipeline.latents for a batch."""

    def __init__(self, pipeline: Pipeline, options: Namespace) -> None:
        self.pipeline, self.options = pipeline, options
        self.classifier = None
        if options.classifier:
            if not getattr(options, "class"):
                raise UserError("--classifier needs --class, the class to guide towards")
            self.classifier = load_classifier(options.classifier, pipeline.model, pipeline.autoencoder)
        self.target = (
            images_to_float(read_image("guide-image", options.guide_image)[None]) if options.guide_image else None
        )
        self.distance = squared_error
        if options.similarity == "lpips":
            self.distance = perceptual.build(perceptual.LPIPSConfig()).to(pipeline.device)
        elif options.similarity != "l2":
            raise UserError(f"--similarity {options.similarity}: it must be l2 or lpips")

    def __call__(self, batch: dict[str, Tensor], count: int) -> Wrap:
        """batch: the prepared fields of `count` images."""
        pipeline, options, schedule = self.pipeline, self.options, self.pipeline.schedule
        wraps: list[Wrap] = []
        if self.classifier is not None:
            log_p = lambda x, t: self.classifier.log_p(x, t, batch["label"])  # noqa: E731
            scale = options.classifier_scale
            wraps.append(lambda denoise, noise: guidance.classifier_guidance(denoise, log_p, scale, schedule))
        if self.target is not None:
            target = self.target.to(pipeline.device).expand(count, -1, -1, -1)
            loss = image_similarity_loss(target, pipeline.autoencoder.decode, self.distance)
            wraps.append(
                lambda denoise, noise: guidance.image_guidance(denoise, loss, options.guide_image_scale, schedule)
            )
        known_pixels = pipeline.blend_known_pixels(batch)
        if known_pixels is not None:
            wraps.append(known_pixels)

        def wrap(denoise: Denoise, noise: Callable[[], Tensor]) -> Denoise:
            for add in wraps:
                denoise = add(denoise, noise)
            return denoise

        return wrap
