"""Do a few steps of a modern sampler equal 50 steps of DDIM? On a run of captions: drawn shapes or emoji.

    python -m benchmarks few_steps RUN [--steps 8] [--count 2000] [--screen 500] [--data data/emoji]

Every sampler and timestep spacing samples --screen images. The one with the highest accuracy (then the lowest KID)
samples --count more, as does DDIM with 50 trailing steps, from the same captions and noise. A step is one evaluation of
the guided network.
Equal quality means not worse: the upper end of the 95 % interval of the loss is below a tenth of the reference; for
KID, below the larger of that and twice the standard error of the reference. Intervals are over images, for KID by
bootstrap. Writes benchmarks/results/few-steps-RUN.json.
"""

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import emoji
from benchmarks.claims.arms import PROMPT_SEED, Kernel
from benchmarks.claims.claim import bootstrap, mean_interval
from latentdiff import cli, recipe
from latentdiff.data import loader
from latentdiff.data.folder import FolderConfig
from latentdiff.data.shapes.dataset import ShapesConfig, prompts
from latentdiff.data.shapes.reader import prompt_accuracy
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.evaluation import image_sets, run
from latentdiff.evaluation.image_sets import ImageDir
from latentdiff.evaluation.run import EvalRun
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.training import checkpoint
from latentdiff.training.distributed import init_distributed

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLERS, SPACINGS = ("dpmpp_2m", "unipc", "ipndm"), ("trailing", "log_snr", "karras", "quadratic")
Accuracy = Callable[[ImageDir, range], dict[str, Tensor]]  # images, indices of their captions -> correct or not [N]


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--screen", type=int, default=500)
    parser.add_argument("--features", default="classifier", help="the feature network, as for evaluate.py")
    parser.add_argument("--data", default="", help="the folder of the run's data, if it has moved")
    o = parser.parse_args(argv)
    world = init_distributed("auto")
    subject = run.open_run(o.run, world)
    if o.data:
        subject = subject._replace(recipe=replace(subject.recipe, data=replace(subject.recipe.data, path=o.data)))
    extractor = run.open_extractor(subject, Namespace(features=o.features), world)
    train = recipe.open_data(subject.recipe, "train")
    real = image_sets.extract(extractor, train, min(len(train), 5000), world).features
    captions, accuracy = READERS[type(subject.recipe.data)](subject, o.screen + o.count)

    def sample(settings: SamplingConfig, indices: range) -> tuple[Kernel, dict[str, Tensor]]:
        spec = SampleSpec(None, ("caption",), captions[indices.start : indices.stop], len(indices), indices.start)
        options = Namespace(split="val", batch_size=100, summary=False)
        images, _ = run.sample(subject, spec, settings, "few-steps", options, world)
        features = image_sets.extract(extractor, images, len(indices), world).features
        return Kernel(features, real), accuracy(images, indices)

    few = [replace(subject.pipeline.model.sampling, sampler=sampler, timestep_spacing=spacing, steps=o.steps)
           for sampler in SAMPLERS for spacing in SPACINGS]  # fmt: skip
    reference = replace(subject.pipeline.model.sampling, sampler="ddim", timestep_spacing="trailing", steps=50)
    screened = {name(settings): summary(*sample(settings, range(o.screen))) for settings in (*few, reference)}
    best = max(few, key=lambda settings: preference(screened[name(settings)]))
    indices = range(o.screen, o.screen + o.count)
    (few_kid, few_correct), (reference_kid, reference_correct) = sample(best, indices), sample(reference, indices)
    value, low, high = bootstrap(reference_kid, o.count)
    loss = bootstrap(lambda w: few_kid(w) - reference_kid(w), o.count)
    allowed = max(0.1 * abs(value), 2 * (high - low) / (2 * 1.96))
    metrics = {"kid": verdict(few_kid(torch.ones(o.count).double()), value, loss, allowed)}
    for metric, correct in reference_correct.items():
        few_mean, reference_mean = (x.double().mean().item() for x in (few_correct[metric], correct))
        loss = mean_interval(correct.double() - few_correct[metric].double())
        metrics[metric] = verdict(few_mean, reference_mean, loss, 0.1 * reference_mean)
    head = {"run": subject.folder.name, "steps": o.steps, "best": name(best), "reference": name(reference),
            "guidance_scale": best.guidance_scale, "features": extractor.metadata, "images": o.count}  # fmt: skip
    result = head | {"compared": metrics, "screened": {"images": o.screen} | screened}
    print(json.dumps(result, indent=1))
    checkpoint.write_json(RESULTS / f"few-steps-{subject.folder.name}.json", result)


def verdict(few: float, reference: float, loss: tuple[float, float, float], allowed: float) -> dict:
    return {"few": few, "reference": reference, "loss": loss, "allowed": allowed, "equal": loss[2] < allowed}


def preference(metrics: dict[str, float]) -> tuple[float, float]:
    """Accuracy first, then KID: far from the data, KID hardly distinguishes sets of images."""
    return sum(value for name, value in metrics.items() if name != "kid"), -metrics["kid"]


def name(settings: SamplingConfig) -> str:
    return f"{settings.sampler} {settings.timestep_spacing} {settings.steps}"


def summary(kernel: Kernel, correct: dict[str, Tensor]) -> dict[str, float]:
    kid = kernel(torch.ones(len(kernel.within), dtype=torch.float64))
    return {"kid": kid} | {metric: x.double().mean().item() for metric, x in correct.items()}


# ---- captions, and the accuracy of images sampled for some of them


def shapes_accuracy(subject: EvalRun, count: int) -> tuple[tuple[str, ...], Accuracy]:
    captions = tuple(prompts(subject.recipe.data, count, PROMPT_SEED))

    def accuracy(images: ImageDir, indices: range) -> dict[str, Tensor]:
        arrays = (image.numpy() for batch in batches(images) for image in batch["image"])
        correct = prompt_accuracy(arrays, captions[indices.start : indices.stop]).correct
        return {"prompt_accuracy": torch.tensor(correct)}

    return captions, accuracy


def emoji_accuracy(subject: EvalRun, count: int) -> tuple[tuple[str, ...], Accuracy]:
    """Validation captions, each several times with different noise; read by the classifier of emoji.py."""
    data, held_out = (recipe.open_data(subject.recipe, split) for split in ("train", "val"))
    colours = emoji.main_colours(data)
    classifier = emoji.train_classifier(data, colours, 1500)
    records = [held_out.record(i % len(held_out), 0) for i in range(count)]
    targets = emoji.labels(records, colours)

    def accuracy(images: ImageDir, indices: range) -> dict[str, Tensor]:
        logits = emoji.predict(classifier, torch.cat([loader.images(batch) for batch in batches(images)]))
        heads = zip(("style_accuracy", "colour_accuracy"), logits, targets)
        return {metric: x.argmax(1) == target[indices.start : indices.stop] for metric, x, target in heads}

    return tuple(record["caption"] for record in records), accuracy


def batches(images: ImageDir) -> Iterator[dict]:
    return loader.sequential_batches(images, range(len(images)), 100)


READERS = {ShapesConfig: shapes_accuracy, FolderConfig: emoji_accuracy}


if __name__ == "__main__":
    sys.argv[0] = "few_steps"
    cli.run(main)
