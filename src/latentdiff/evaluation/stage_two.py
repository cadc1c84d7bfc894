"""Metrics of the samples of a diffusion model: against real images, their conditions and their prompts."""

import hashlib
import math
from typing import Any

import torch
from torch import Tensor, nn

from latentdiff.autoencoder.perceptual import LPIPSDistance
from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.shapes.reader import prompt_accuracy, wilson
from latentdiff.evaluation import distances, image_sets, stage_one
from latentdiff.evaluation.clip_score import ClipScorer
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.evaluation.image_sets import Features, ImageDir
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.training.distributed import World


def distribution_metrics(samples: Features, real: Features) -> dict[str, float]:
    """FID, KID, precision and recall of samples against real images; the inception score if there are logits."""
    a, b = samples.features, real.features
    if min(len(a), len(b)) < 2:
        raise UserError(f"{len(a)} generated and {len(b)} real images cannot be compared; it needs at least 2 of each")
    precision, recall = distances.precision_recall(a, b)
    metrics = {"fid": distances.fid(a, b), "kid": distances.kid(a, b), "kid_error": distances.kid_error(a, b),
               "precision": precision, "recall": recall}  # fmt: skip
    if samples.logits is not None:
        metrics["inception_score"], metrics["inception_score_std"] = distances.inception_score(samples.logits)
    return metrics


def held_out_metrics(held_out: Features, real: Features) -> dict[str, float]:
    """The same metrics of held-out real images, what a perfect model would reach with as many: fid_real, ..."""
    names = ("fid", "kid", "precision", "recall", "inception_score")
    return {f"{name}_real": x for name, x in distribution_metrics(held_out, real).items() if name in names}


def clip_score(clip: ClipScorer, samples: ImageDir, spec: SampleSpec, world: World) -> dict[str, float]:
    """The CLIP score of the samples with their captions."""
    if "caption" not in spec.reads:
        raise UserError("--clip is for runs that are conditioned on text")

    def metrics(batch: dict) -> dict[str, Tensor]:
        captions = spec.batch(batch["index"].tolist())["caption"]
        return {"clip_score": clip.score(loader.images(batch), captions)}

    return image_sets.mean_metrics(samples, spec.count, world, metrics)


def target_metrics(samples: ImageDir, spec: SampleSpec, lpips: LPIPSDistance | None, world: World) -> dict[str, float]:
    """PSNR, SSIM and LPIPS to the original image (super-resolution, inpainting); LPIPS also in the masked region."""
    if spec.captions or not {"low_res", "mask"} & set(spec.reads):
        return {}

    def metrics(batch: dict) -> dict[str, Tensor]:
        target = spec.batch(batch["index"].tolist())
        x, y = loader.images(target, world.device), loader.images(batch, world.device)
        values = {"psnr_to_target": psnr(x, y), "ssim_to_target": ssim(x, y)}
        if lpips is not None:
            values["lpips_to_target"] = lpips(y, x).flatten()
            if "mask" in target:
                mask = (target["mask"].to(world.device) > 0).float()[:, None]  # [B, 1, H, W]
                values["masked_lpips"] = stage_one.masked_lpips(lpips, x, y, mask)
        return values

    return image_sets.mean_metrics(samples, spec.count, world, metrics, 50)


def prompt_metrics(samples: ImageDir, captions: list[str], suffix: str) -> dict[str, Any]:
    """Fraction of images of drawn shapes that show what their prompt names and nothing else, with its 95 % interval."""
    batches = loader.sequential_batches(samples, range(len(captions)), 100)
    result = prompt_accuracy((image.numpy() for batch in batches for image in batch["image"]), captions)
    correct, n = sum(result.correct), len(captions)
    low, high = wilson(correct, n)
    metrics = {f"prompt_accuracy{suffix}": correct / n, f"prompt_accuracy{suffix}_low": low,
               f"prompt_accuracy{suffix}_high": high, f"prompts{suffix}": n}  # fmt: skip
    return metrics | {f"{name}_accuracy{suffix}": x for name, x in result.by_attribute.items() if name != "all"}


def digest(module: nn.Module, settings: Any) -> str:
    """A short hash of the weights and of the other settings that samples depend on."""
    sha = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by null."""
    return {name: None if isinstance(x, float) and not math.isfinite(x) else x for name, x in metrics.items()}
