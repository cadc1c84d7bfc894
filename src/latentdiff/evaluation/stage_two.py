"""What a diffusion model draws, against real pictures and against what it was asked for."""

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


def compare(drawn: Features, real: Features) -> dict[str, float]:
    """How far the drawn pictures are from the real ones, and how much of each set the other covers."""
    a, b = drawn.features, real.features
    if min(len(a), len(b)) < 2:
        raise UserError(f"{len(a)} drawn and {len(b)} real pictures are compared; sets of at least 2 each can be")
    precision, recall = distances.precision_recall(a, b)
    figures = {"fid": distances.fid(a, b), "kid": distances.kid(a, b), "kid_error": distances.kid_error(a, b),
               "precision": precision, "recall": recall}  # fmt: skip
    if drawn.logits is not None:
        figures["inception_score"], figures["inception_score_std"] = distances.inception_score(drawn.logits)
    return figures


def in_real_pictures(held_out: Features, real: Features) -> dict[str, float]:
    """The same figures of held-out pictures, what a perfect model would get at that number: fid_real, ..."""
    kept = ("fid", "kid", "precision", "recall", "inception_score")
    return {f"{name}_real": value for name, value in compare(held_out, real).items() if name in kept}


def clip_score(clip: Clip, drawn: ImageDir, wanted: SampleSpec, world: World) -> dict[str, float]:
    """How well the pictures fit the captions that they were drawn from."""
    if "caption" not in wanted.reads:
        raise UserError("--clip is for runs that draw from text")

    def look(batch: dict) -> Tensor:
        first = int(batch["index"][0])
        captions = wanted.batch(range(first, first + len(batch["index"])))["caption"]
        return clip.score(loader.images(batch), captions)[:, None]

    return {"clip_score": image_sets.over(drawn, wanted.count, world, look).double().mean().item()}


def against_truth(drawn: ImageDir, wanted: SampleSpec, distance: nn.Module | None, world: World) -> dict[str, float]:
    """Where the condition is a small or a masked picture, the drawn one has a true one to be held against.

    Inpainted pictures show what was known as it was (LatentDiffusion.finished) and are measured in the hole as well.
    """
    if wanted.captions or not {"low_res", "mask"} & set(wanted.reads):
        return {}
    masked, names = "mask" in wanted.reads, []

    def look(batch: dict) -> Tensor:
        first = int(batch["index"][0])
        asked = wanted.batch(range(first, first + len(batch["index"])))
        x, y = loader.images(asked, world.device), loader.images(batch, world.device)
        found = {}
        if masked and isinstance(distance, LPIPSDistance):
            hole = (asked["mask"].to(world.device) > 0).float()[:, None]  # [B, 1, H, W]
            found["lpips_in_hole"] = stage_one.lpips_in_hole(distance, x, y, hole)
        if distance is not None:
            found["lpips_to_truth"] = distance(y, x).flatten()
        found |= {"psnr_to_truth": psnr(x, y), "ssim_to_truth": ssim(x, y)}
        names[:] = found
        return torch.stack(list(found.values()), 1)

    means = image_sets.over(drawn, wanted.count, world, look, 50).double().mean(0).tolist()
    return dict(zip(names, means))


def accuracy(drawn: ImageDir, captions: list[str], suffix: str) -> dict[str, Any]:
    """The share of drawn shapes in which a reader finds all that the prompt names and nothing else."""
    batches = loader.sequential_batches(drawn, range(len(captions)), 100)
    result = prompt_accuracy((image.numpy() for batch in batches for image in batch["image"]), captions)
    right, n = sum(result.correct), len(captions)
    low, high = wilson(right, n)
    figures = {f"prompt_accuracy{suffix}": right / n, f"prompt_accuracy{suffix}_low": low,
               f"prompt_accuracy{suffix}_high": high, f"prompts{suffix}": n}  # fmt: skip
    return figures | {f"{name}_accuracy{suffix}": rate for name, rate in result.by_attribute.items() if name != "all"}


def digest(model: nn.Module, depends: Any) -> str:
    """A short hash of the weights that are measured, and of what else the pictures depend on."""
    total = hashlib.sha256(repr(depends).encode())
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:12]


def finite(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no NaN: such a figure is null."""
    return {n: None if isinstance(v, float) and not math.isfinite(v) else v for n, v in figures.items()}
