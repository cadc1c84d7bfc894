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
from latentdiff.evaluation.clip_score import Clip
from latentdiff.evaluation.image_metrics import psnr, ssim
from latentdiff.evaluation.image_sets import Features, ImageDir
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.training.distributed import World


def distribution_metrics(samples: Features, real: Features) -> dict[str, float]:
    """FID, KID, precision and recall of samples against real images; the inception score if there are logits."""
    a, b = samples.features, real.features
    if min(len(a), len(b)) < 2:
        raise UserError(f"{len(a)} generated and {len(b)} real images: sets of at least 2 each can be compared")
    precision, recall = distances.precision_recall(a, b)
    metrics = {
        "fid": distances.fid(a, b),
        "kid": distances.kid(a, b),
        "kid_error": distances.kid_error(a, b),
        "precision": precision,
        "recall": recall,
    }
    if samples.logits is not None:
        metrics["inception_score"], metrics["inception_score_std"] = distances.inception_score(samples.logits)
    return metrics


def held_out_metrics(held_out: Features, real: Features) -> dict[str, float]:
    """The same metrics of held-out real images, what a perfect model would reach with as many: fid_real, ..."""
    names = ("fid", "kid", "precision", "recall", "inception_score")
    return {f"{name}_real": x for name, x in distribution_metrics(held_out, real).items() if name in names}


def clip_score(clip: Clip, samples: ImageDir, spec: SampleSpec, world: World) -> dict[str, float]:
    """The CLIP score of the samples with their captions."""
    if "caption" not in spec.reads:
        raise UserError("--clip is for runs that are conditioned on text")

    def scores(batch: dict) -> Tensor:
        first = int(batch["index"][0])
        captions = spec.batch(range(first, first + len(batch["index"])))["caption"]
        return clip.score(loader.images(batch), captions)[:, None]

    return {"clip_score": image_sets.map_batches(samples, spec.count, world, scores).double().mean().item()}


def target_metrics(samples: ImageDir, spec: SampleSpec, lpips: nn.Module | None, world: World) -> dict[str, float]:
    """PSNR, SSIM and LPIPS to the original image (super-resolution, inpainting); LPIPS also in the masked region."""
    if spec.captions or not {"low_res", "mask"} & set(spec.reads):
        return {}
    masked, names = "mask" in spec.reads, []

    def metrics(batch: dict) -> Tensor:
        first = int(batch["index"][0])
        target = spec.batch(range(first, first + len(batch["index"])))
        x, y = loader.images(target, world.device), loader.images(batch, world.device)
        values = {}
        if masked and isinstance(lpips, LPIPSDistance):
            mask = (target["mask"].to(world.device) > 0).float()[:, None]  # [B, 1, H, W]
            values["masked_lpips"] = stage_one.masked_lpips(lpips, x, y, mask)
        if lpips is not None:
            values["lpips_to_target"] = lpips(y, x).flatten()
        values |= {"psnr_to_target": psnr(x, y), "ssim_to_target": ssim(x, y)}
        names[:] = values
        return torch.stack(list(values.values()), 1)

    means = image_sets.map_batches(samples, spec.count, world, metrics, 50).double().mean(0).tolist()
    return dict(zip(names, means))


def prompt_metrics(samples: ImageDir, captions: list[str], suffix: str) -> dict[str, Any]:
    """The fraction of images of drawn shapes that show what their prompt names and nothing else, with 95 % interval."""
    batches = loader.sequential_batches(samples, range(len(captions)), 100)
    result = prompt_accuracy((image.numpy() for batch in batches for image in batch["image"]), captions)
    correct, n = sum(result.correct), len(captions)
    low, high = wilson(correct, n)
    metrics = {
        f"prompt_accuracy{suffix}": correct / n,
        f"prompt_accuracy{suffix}_low": low,
        f"prompt_accuracy{suffix}_high": high,
        f"prompts{suffix}": n,
    }
    return metrics | {f"{name}_accuracy{suffix}": x for name, x in result.by_attribute.items() if name != "all"}


def digest(module: nn.Module, settings: Any) -> str:
    """A short hash of the weights and of the other settings that samples depend on."""
    sha = hashlib.sha256(repr(settings).encode())
    for name, value in sorted(module.state_dict().items()):
        sha.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:12]


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """NaN and infinity as null, which JSON has instead."""
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in metrics.items()}
