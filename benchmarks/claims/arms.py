"""Images of a trained run under different settings, sampled from the same noise, and their comparison."""

from argparse import Namespace
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.claims.claim import Setting, bootstrap
from latentdiff import recipe
from latentdiff.data import loader
from latentdiff.data.shapes.dataset import prompts
from latentdiff.data.shapes.reader import prompt_accuracy
from latentdiff.evaluation import distances, features, image_sets, run
from latentdiff.evaluation.image_sets import Features, ImageDir
from latentdiff.evaluation.run import EvalRun
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.sampling.pipeline import Pipeline
from latentdiff.training.distributed import World, init_distributed

PROMPT_SEED = 40_000_000  # seed of scenes that no other measurement uses


@dataclass(frozen=True, eq=False)
class Experiment:
    """What all arms share: the run, its prompts, and the features of real images."""

    setting: Setting
    subject: EvalRun
    captions: tuple[str, ...]
    extractor: features.Extractor
    real: Features
    world: World

    @property
    def protocol(self) -> str:
        s, network = self.setting, self.extractor.metadata
        return (
            f"{s.count} images per arm, seeds {s.seed} to {s.seed + s.count - 1}, the same in every arm; features "
            f"of {network['name']} ({network['weights']}), {len(self.real.features)} training images as reference"
        )


class Arm(NamedTuple):
    images: ImageDir
    features: Tensor  # [N, D]
    correct: Tensor  # bool [N]: every attribute of the prompt, and nothing else
    images_per_second: float  # nan if the images were already there


@cache
def open_experiment(setting: Setting) -> Experiment:
    world = init_distributed(setting.device)
    subject = run.open_run(setting.run, world)
    options = Namespace(features="classifier", split="val", batch_size=100, summary=False)
    train = recipe.open_data(subject.recipe, "train")
    extractor = run.open_extractor(subject, options, world)
    real = image_sets.extract(extractor, train, min(len(train), 5000), world)
    captions = tuple(prompts(subject.recipe.data, setting.count, PROMPT_SEED))
    return Experiment(setting, subject, captions, extractor, real, world)


@cache
def sample_arm(experiment: Experiment, pipeline: Pipeline | None = None, **changes) -> Arm:
    """Images with changed sampling settings or another pipeline; those that exist are read."""
    subject = experiment.subject if pipeline is None else experiment.subject._replace(pipeline=pipeline)
    defaults = {"sampler": None, "steps": None, "guidance_scale": None}
    options = Namespace(**(defaults | changes), split="val", batch_size=100, summary=False)
    spec = SampleSpec(None, ("caption",), experiment.captions, experiment.setting.count, experiment.setting.seed)
    settings = run.sampling_settings(subject.pipeline, options)
    images, cost = run.sample(subject, spec, settings, "claims", options, experiment.world)
    x = image_sets.extract(experiment.extractor, images, len(images), experiment.world).features
    return Arm(images, x, correct_prompts(images, experiment.captions), cost.get("images_per_second", float("nan")))


def correct_prompts(images: ImageDir, captions: tuple[str, ...]) -> Tensor:
    """Whether the scene reader finds exactly what the caption of each image describes: bool [N]."""
    batches = loader.sequential_batches(images, range(len(images)), 100)
    arrays = (image.numpy() for batch in batches for image in batch["image"])
    return torch.tensor(prompt_accuracy(arrays, captions).correct)


# ---- comparisons, as functions of weights of the sampled images


class Kernel:
    """The KID of an arm as a function of the weights of its images (for the bootstrap)."""

    def __init__(self, samples: Tensor, real: Tensor) -> None:
        a, r = samples.double(), real.double()
        self.within = distances.kernel(a, a).fill_diagonal_(0)  # [N, N]
        self.across = torch.cat([distances.kernel(rows, r).mean(1) for rows in a.split(distances.CHUNK_SIZE)])  # [N]
        total = sum(distances.kernel(rows, r).sum() for rows in r.split(distances.CHUNK_SIZE))
        diagonal = ((r.square().sum(1) / r.shape[1] + 1) ** 3).sum()
        self.real = ((total - diagonal) / (len(r) * (len(r) - 1))).item()

    def __call__(self, weights: Tensor) -> float:
        pairs = weights.sum() ** 2 - weights.square().sum()
        within = weights @ self.within @ weights / pairs
        return (within + self.real - 2 * (weights @ self.across) / weights.sum()).item()


def kernels(arms: dict[str, Arm], experiment: Experiment) -> dict[str, Kernel]:
    return {name: Kernel(arm.features, experiment.real.features) for name, arm in arms.items()}


def kid_difference(a: Kernel, b: Kernel, n: int) -> tuple[float, float, float]:
    """KID of a minus KID of b, with its interval; both are resampled with the same indices."""
    return bootstrap(lambda w: a(w) - b(w), n)


def covered(points: Tensor, centres: Tensor, k: int = 3) -> Tensor:
    """Whether each point lies within the distance from a centre to its k-th neighbour: float64 [N] of 0 and 1."""
    radius = distances.nearest_neighbors(centres, centres, k + 1).distance[:, -1]
    points, centres = points.double(), centres.double()
    return torch.cat([(torch.cdist(rows, centres) <= radius).any(1) for rows in points.split(1000)]).double()
