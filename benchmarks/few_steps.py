"""Do few steps of a modern sampler draw as well as 50 of DDIM? On a run of captions: drawn shapes or emoji.

    python -m benchmarks few_steps RUN [--steps 8] [--count 2000] [--screen 500] [--data data/emoji]

Every sampler and spacing draws --screen pictures; the one that is right most often (of two, the one with less KID) then
draws --count others, and so does DDIM with 50 trailing steps, from the same captions and noise. A step is one
evaluation of the guided network.
Equal quality means not worse: the upper end of the 95 % interval of the loss is below a tenth of the reference; for
KID, below the larger of that and twice the standard error of the reference's. The interval is over the pictures,
by bootstrap for KID. benchmarks/results/few-steps-RUN.json is written.
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
from benchmarks.claims.arms import PROMPTS, Kernel
from benchmarks.claims.claim import bootstrap, mean_interval
from latentdiff import cli, recipe
from latentdiff.data import loader
from latentdiff.data.folder import FolderConfig
from latentdiff.data.shapes.dataset import ShapesConfig, prompts
from latentdiff.data.shapes.reader import prompt_accuracy
from latentdiff.evaluation import image_sets, run
from latentdiff.evaluation.image_sets import ImageDir
from latentdiff.evaluation.run import EvalRun
from latentdiff.evaluation.sample_images import SampleSpec
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.training import checkpoint
from latentdiff.training.distributed import init_distributed

RESULTS = Path(__file__).resolve().parent / "results"
SAMPLERS, SPACINGS = ("dpmpp_2m", "unipc", "ipndm"), ("trailing", "log_snr", "karras", "quadratic")
Verdict = Callable[
    [ImageDir, range], dict[str, Tensor]
]  # pictures and which captions they are for -> what is right, [N]


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--screen", type=int, default=500)
    parser.add_argument("--features", default="own", help="what sees the pictures, as evaluate.py's --features")
    parser.add_argument("--data", default="", help="where the run's pictures lie now")
    o = parser.parse_args(words)
    world = init_distributed("auto")
    subject = run.open_subject(o.run, world)
    if o.data:
        subject = subject._replace(recipe=replace(subject.recipe, data=replace(subject.recipe.data, path=o.data)))
    extractor = run.find_features(subject, Namespace(features=o.features), world)
    train = recipe.open_data(subject.recipe, "train")
    real = image_sets.extract(extractor, train, min(len(train), 5000), world).features
    captions, judge = JUDGES[type(subject.recipe.data)](subject, o.screen + o.count)

    def drawn(settings: SamplingConfig, some: range) -> tuple[Kernel, dict[str, Tensor]]:
        wanted = SampleSpec(None, ("caption",), captions[some.start : some.stop], len(some), some.start)
        options = Namespace(split="val", batch_size=100, summary=False)
        folder, _ = run.draw(subject, wanted, settings, "few-steps", options, world)
        return Kernel(image_sets.extract(extractor, folder, len(some), world).features, real), judge(folder, some)

    few = [replace(subject.model.sampling, sampler=sampler, timestep_spacing=spacing, steps=o.steps)
           for sampler in SAMPLERS for spacing in SPACINGS]  # fmt: skip
    long, screen = (
        replace(subject.model.sampling, sampler="ddim", timestep_spacing="trailing", steps=50),
        range(o.screen),
    )
    found = {name(settings): summary(*drawn(settings, screen)) for settings in (*few, long)}
    best = max(few, key=lambda settings: preference(found[name(settings)]))
    rest = range(o.screen, o.screen + o.count)
    (few_kid, few_right), (long_kid, long_right) = drawn(best, rest), drawn(long, rest)
    spread = bootstrap(long_kid, o.count)
    whole, error = spread[0], (spread[2] - spread[1]) / (2 * 1.96)
    loss = bootstrap(lambda w: few_kid(w) - long_kid(w), o.count)
    figures = {"kid": verdict(few_kid(torch.ones(o.count).double()), whole, loss, max(0.1 * abs(whole), 2 * error))}
    for what, right in long_right.items():
        one, other = few_right[what].double().mean().item(), right.double().mean().item()
        lost = mean_interval(right.double() - few_right[what].double())
        figures[what] = verdict(one, other, lost, 0.1 * other)
    about = {"run": subject.folder.name, "steps": o.steps, "best": name(best), "reference": name(long),
             "guidance_scale": best.guidance_scale, "features": extractor.about, "pictures": o.count}  # fmt: skip
    result = about | {"compared": figures, "screened": {"pictures": o.screen} | found}
    print(json.dumps(result, indent=1))
    checkpoint.write_json(RESULTS / f"few-steps-{subject.folder.name}.json", result)


def verdict(few: float, long: float, loss: tuple[float, float, float], allowed: float) -> dict:
    return {"few": few, "long": long, "loss": loss, "allowed": allowed, "equal": loss[2] < allowed}


def preference(figures: dict[str, float]) -> tuple[float, float]:
    """What is right first: far from the data, KID hardly tells pictures apart."""
    return sum(value for what, value in figures.items() if what != "kid"), -figures["kid"]


def name(settings: SamplingConfig) -> str:
    return f"{settings.sampler} {settings.timestep_spacing} {settings.steps}"


def summary(kernel: Kernel, right: dict[str, Tensor]) -> dict[str, float]:
    return {"kid": kernel(torch.ones(len(kernel.own), dtype=torch.float64))} | {
        what: x.double().mean().item() for what, x in right.items()
    }


# ---- who says what is right: captions, and a verdict on the pictures drawn for some of them


def of_shapes(subject: EvalRun, count: int) -> tuple[tuple[str, ...], Verdict]:
    captions = tuple(prompts(subject.recipe.data, count, PROMPTS))

    def judge(drawn: ImageDir, some: range) -> dict[str, Tensor]:
        images = (image.numpy() for batch in batches(drawn) for image in batch["image"])
        return {"prompts right": torch.tensor(prompt_accuracy(images, captions[some.start : some.stop]).correct)}

    return captions, judge


def of_emoji(subject: EvalRun, count: int) -> tuple[tuple[str, ...], Verdict]:
    """Captions of val, each several times with noise of its own; the judge that emoji.py trains on the real ones."""
    data, held_out = (recipe.open_data(subject.recipe, split) for split in ("train", "val"))
    colours = sorted({colour for row in data.listing.rows.values() for colour in row["colors"][:1]})
    network = emoji.train_judge(data, colours, 1500)
    records = [held_out.record(i % len(held_out), 0) for i in range(count)]
    wanted = emoji.labels(records, colours)

    def judge(drawn: ImageDir, some: range) -> dict[str, Tensor]:
        found = emoji.verdicts(network, torch.cat([loader.images(batch) for batch in batches(drawn)]))
        pairs = zip(("style right", "colour right"), found, wanted)
        return {what: logits.argmax(1) == truth[some.start : some.stop] for what, logits, truth in pairs}

    return tuple(record["caption"] for record in records), judge


def batches(drawn: ImageDir) -> Iterator[dict]:
    return loader.sequential_batches(drawn, range(len(drawn)), 100)


JUDGES = {ShapesConfig: of_shapes, FolderConfig: of_emoji}


if __name__ == "__main__":
    sys.argv[0] = "few_steps"
    cli.run(main)
