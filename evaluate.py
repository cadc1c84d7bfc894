"""Evaluate a run, or a folder of images: metrics as JSON and on the screen, and an HTML report.

    python evaluate.py RUN [--count N] [--features NAME|FILE] [--split val] ...
    python evaluate.py --samples DIR --reference DIR
    torchrun --nproc_per_node=8 evaluate.py RUN --count 50000

RUN               folder or name of a run of either stage
--output FILE     file of the metrics (default: evaluation.json in the run's folder); report.html is written beside it
--split NAME      images to reconstruct, and whose conditions are sampled: val (default), test or train
--count N         images to sample, and the largest number of reconstructions (default 1000; with --prompts-file: all
                  its lines)
--seed N          image i is sampled with seed N + i (default 0)
--sampler NAME --steps N --guidance-scale S      instead of the settings of the run
--batch-size N    images per batch (default 50)
--features X      network whose features are compared: auto (Inception if its weights exist, else classifier), inception
                  (downloads it), classifier (a small one, trained on the labels and caption words of the data, kept
                  in the folder of the run), autoencoder, or a file: SqueezeNet, MobileNetV2, or features.safetensors of
                  another run
--prompts-file F  sample these captions, one per line, instead of those of the data (as for 30,000 captions of COCO)
--prompts N       prompts for the accuracy on drawn shapes (default 500)
--clip DIR        folder of a CLIP model: adds clip_score
--reference DIR   real images to compare with, preprocessed as in training (default: the training data)
--samples DIR     evaluate these images instead of sampling
--no-report       no report
--summary         only psnr, ssim, lpips, prompt_accuracy; writes summary.json: psnr, prompt_accuracy, and the seconds
                  since the first training step
"""

from latentdiff import cli

cli.answer_help(__doc__)

import time
from pathlib import Path

from latentdiff.config import UserError
from latentdiff.evaluation import report, run, stage_two
from latentdiff.evaluation.options import evaluate_arguments
from latentdiff.evaluation.run import EvalRun
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import World, init_distributed
from latentdiff.training.log import read_metrics


def main(argv: list[str]) -> None:
    options = evaluate_arguments(argv)
    start, world = time.perf_counter(), init_distributed()
    if options.run is None:
        metrics, protocol = run.folder_metrics(options, world)
        return write_metrics(metrics, protocol, Path(options.output or "evaluation.json"), world)
    eval_run = run.open_run(options.run, world)
    parts = [run.reconstruction_metrics]
    if eval_run.pipeline is not None:
        parts += [run.prompt_metrics] if options.summary else [run.prompt_metrics, run.sample_metrics]
    metrics, protocol = {}, {}
    for part in parts:
        part_metrics, part_protocol = part(eval_run, options, world)
        metrics, protocol = metrics | part_metrics, protocol | part_protocol
    output = Path(options.output or eval_run.folder / "evaluation.json")
    write_metrics(metrics, protocol, output, world)
    if options.summary:
        write_summary(eval_run, metrics, time.perf_counter() - start, world)
    elif options.report and world.is_main:
        path = output.with_name("report.html")
        report.write(path, eval_run, metrics, protocol, options, world)
        print(f"report: {path}")
    world.barrier()


def write_metrics(metrics: dict, protocol: dict, path: Path, world: World) -> None:
    """To the file and the screen."""
    if not world.is_main:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(path, stage_two.finite(metrics) | {"protocol": protocol})
    for name, value in metrics.items():
        print(f"  {name:<32}{value:.4f}" if isinstance(value, float) else f"  {name:<32}{value}")
    for name, value in protocol.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        print(f"  {'protocol of ' + name:<32}{value}")


def write_summary(eval_run: EvalRun, metrics: dict, seconds: float, world: World) -> None:
    """summary.json of a text-to-image run on drawn shapes."""
    names = ("psnr", "prompt_accuracy")
    if "prompt_accuracy" not in metrics:
        raise UserError(
            f"--summary is for text-to-image runs on drawn shapes; {eval_run.folder} is another kind of run"
        )
    seconds = round(seconds + training_seconds(eval_run), 1)
    if world.is_main:
        summary = {name: metrics[name] for name in names} | {"seconds": seconds}
        checkpoint.write_json(eval_run.folder / "summary.json", summary)
        print(f"  seconds, from the first training step to the last sample: {seconds:.0f}")


def training_seconds(eval_run: EvalRun) -> float:
    """Duration of both stages according to their logs: training, validation, latent statistics, cache, samples."""
    first_stage = run_dir.find_run(eval_run.recipe.autoencoder.path)
    return sum(read_metrics(f / "metrics.jsonl")[-1]["seconds"] for f in (first_stage, eval_run.folder))


if __name__ == "__main__":
    cli.run(main)
