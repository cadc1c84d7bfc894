"""Measure a trained run, or a folder of pictures: figures as JSON, on the screen, and a page to look at.

    python evaluate.py RUN [--count N] [--features NAME|FILE] [--split val] ...
    python evaluate.py --samples DIR --reference DIR
    torchrun --nproc_per_node=8 evaluate.py RUN --count 50000

RUN               a run's folder or name, of either stage
--output FILE     where the figures go (default: evaluation.json in the run's folder); report.html goes beside it
--split NAME      which pictures are reconstructed, and whose conditions are drawn: val (default), test or train
--count N         pictures to draw, and at most to reconstruct (default 1000; with --prompts-file one per line)
--seed N          picture i is drawn with seed N + i (default 0)
--sampler NAME --steps N --guidance-scale S      instead of the run's own
--batch-size N    pictures drawn at once (default 50)
--features X      how pictures are seen: auto (Inception where its weights lie, else own), inception (downloads it),
                  own (a small network that learns the data's labels and captions, kept in the run's folder),
                  autoencoder, or a file: SqueezeNet, MobileNetV2, another run's features.safetensors
--prompts-file F  draw these captions, one per line, and not the data's (as for 30,000 captions of COCO)
--prompts N       prompts of the drawn-shapes accuracy (default 500)
--clip DIR        a folder with a CLIP model: adds clip_score
--reference DIR   real pictures to compare with, preprocessed as in training (default: the training data)
--samples DIR     pictures that are measured instead of drawing any
--no-report       no page
--summary         only what is quick: psnr, ssim, lpips, prompt_accuracy; and summary.json: psnr, prompt_accuracy, and
                  the seconds from the first training step to here
"""

from latentdiff import cli
from latentdiff.sampling import options as sampling_options

cli.answer_help(__doc__)

import time
from pathlib import Path

from latentdiff.config import UserError
from latentdiff.evaluation import report, run, stage_two
from latentdiff.evaluation.run import EvalRun
from latentdiff.model import LatentDiffusion
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import read_metrics


def main(words: list[str]) -> None:
    options = sampling_options.evaluate_arguments(words)
    started, world = time.perf_counter(), init_distributed()
    if options.run is None:
        figures, protocol = run.folders(options, world)
        return tell(figures, protocol, Path(options.output or "evaluation.json"), world)
    subject = run.open_subject(options.run, world)
    parts = [run.reconstructions]
    if isinstance(subject.model, LatentDiffusion):
        parts += [run.prompted] if options.summary else [run.prompted, run.samples]
    figures, protocol = {}, {}
    for part in parts:
        found, how = part(subject, options, world)
        figures, protocol = figures | found, protocol | how
    output = Path(options.output or subject.folder / "evaluation.json")
    tell(figures, protocol, output, world)
    if options.summary:
        summarise(subject, figures, time.perf_counter() - started, world)
    elif options.report and world.is_main:
        path = output.with_name("report.html")
        report.write(path, subject, figures, protocol, options)
        print(f"look at {path}")
    world.barrier()


def tell(figures: dict, protocol: dict, path: Path, world: World) -> None:
    """To the file and to the screen."""
    if not world.is_main:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(path, stage_two.finite(figures) | {"protocol": protocol})
    for name, value in figures.items():
        print(f"  {name:<32}{value:.4f}" if isinstance(value, float) else f"  {name:<32}{value}")
    for name, value in protocol.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"  {'measured with ' + name:<32}{value}")


def summarise(subject: EvalRun, figures: dict, seconds: float, world: World) -> None:
    names = ("psnr", "prompt_accuracy")
    if "prompt_accuracy" not in figures:
        raise UserError(f"--summary is for text-to-image runs on drawn shapes; run {subject.folder} is none")
    seconds = round(seconds + training_seconds(subject), 1)
    if world.is_main:
        checkpoint.write_json(subject.folder / "summary.json", {n: figures[n] for n in names} | {"seconds": seconds})
        print(f"  seconds, from the first training step to the last sample: {seconds:.0f}")


def training_seconds(subject: EvalRun) -> float:
    """What both stages took, by their own clocks: training, validation, statistics, cache, samples."""
    first_stage = run_dir.find_run(subject.recipe.autoencoder.path)
    return sum(read_metrics(f / "metrics.jsonl")[-1]["seconds"] for f in (first_stage, subject.folder))


if __name__ == "__main__":
    cli.run(main)
