"""Pictures of a trained run under different settings, from the same noise, and how they compare."""

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
from latentdiff.training.distributed import World, init_distributed

PROMPTS = 40_000_000  # a seed of scenes that no other measurement draws


@dataclass(frozen=True, eq=False)
class Bench:
    """What all arms share: the run, its prompts, and real pictures as the judge sees them."""

    setting: Setting
    subject: EvalRun
    captions: tuple[str, ...]
    extractor: features.Extractor
    real: Features
    world: World

    @property
    def about(self) -> str:
        s = self.setting
        names = f"seeds {s.seed} to {s.seed + s.count - 1}, the same in every arm"
        about = self.extractor.about
        return (f"{s.count} pictures an arm, {names}; features of {about['name']} ({about['weights']}), "
                f"{len(self.real.features)} training pictures as the reference")  # fmt: skip


class Arm(NamedTuple):
    drawn: ImageDir
    seen: Tensor  # features [N, D]
    right: Tensor  # bool [N]: the reader finds all that was asked for, and nothing else
    pace: float  # pictures per second, nan where they were there already


@cache
def bench(setting: Setting) -> Bench:
    world = init_distributed(setting.device)
    subject = run.open_subject(setting.run, world)
    options = Namespace(features="own", split="val", batch_size=100, summary=False)
    train = recipe.open_data(subject.recipe, "train")
    extractor = run.find_features(subject, options, world)
    real = image_sets.extract(extractor, train, min(len(train), 5000), world)
    captions = tuple(prompts(subject.recipe.data, setting.count, PROMPTS))
    return Bench(setting, subject, captions, extractor, real, world)


@cache
def arm(b: Bench, model: object = None, **changes) -> Arm:
    """The pictures of a setting; those that were drawn before are read."""
    subject = b.subject if model is None else b.subject._replace(model=model)
    names = {"sampler": None, "steps": None, "guidance_scale": None}
    options = Namespace(**(names | changes), split="val", batch_size=100, summary=False)
    wanted = SampleSpec(None, ("caption",), b.captions, b.setting.count, b.setting.seed)
    settings = run.chosen(subject.model, options)
    drawn, cost = run.draw(subject, wanted, settings, "claims", options, b.world)
    seen = image_sets.extract(b.extractor, drawn, len(drawn), b.world).features
    return Arm(drawn, seen, right(drawn, b.captions), cost.get("images_per_second", float("nan")))


def right(drawn: ImageDir, captions: tuple[str, ...]) -> Tensor:
    batches = loader.sequential_batches(drawn, range(len(drawn)), 100)
    images = (image.numpy() for batch in batches for image in batch["image"])
    return torch.tensor(prompt_accuracy(images, captions).correct)


# ---- comparisons, as functions of weights of the drawn pictures


class Kernel:
    """KID of an arm as a function of how often each of its pictures counts."""

    def __init__(self, drawn: Tensor, real: Tensor) -> None:
        a, r = drawn.double(), real.double()
        self.own = distances.kernel(a, a).fill_diagonal_(0)  # [N, N]
        self.across = torch.cat([distances.kernel(rows, r).mean(1) for rows in a.split(distances.ROWS)])  # [N]
        whole = sum(distances.kernel(rows, r).sum() for rows in r.split(distances.ROWS))
        same = ((r.square().sum(1) / r.shape[1] + 1) ** 3).sum()
        self.real = ((whole - same) / (len(r) * (len(r) - 1))).item()

    def __call__(self, weights: Tensor) -> float:
        pairs = weights.sum() ** 2 - weights.square().sum()
        within = weights @ self.own @ weights / pairs
        return (within + self.real - 2 * (weights @ self.across) / weights.sum()).item()


def kid(arms: dict[str, Arm], b: Bench) -> dict[str, Kernel]:
    return {name: Kernel(a.seen, b.real.features) for name, a in arms.items()}


def difference(a: Kernel, b: Kernel, n: int) -> tuple[float, float, float]:
    """KID of a minus KID of b; the same pictures, by their numbers, are left out of both."""
    return bootstrap(lambda w: a(w) - b(w), n)


def covered(points: Tensor, centres: Tensor, k: int = 3) -> Tensor:
    """Which points lie in a ball around a centre that reaches to the centre's k-th neighbour: float64 [N]."""
    radius = distances.nearest(centres, centres, k + 1).distance[:, -1]
    points, centres = points.double(), centres.double()
    return torch.cat([(torch.cdist(rows, centres) <= radius).any(1) for rows in points.split(1000)]).double()
