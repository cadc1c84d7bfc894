"""Accuracy over training time: every kept checkpoint of a text-to-shapes run, evaluated like a finished run.

python -m benchmarks curve RUN [--prompts 500] [--every 1000]       during or after the training
python -m benchmarks curve --page                                   write docs/curve.svg from the results

Results are added to benchmarks/results/curve.json; a checkpoint with a result is not evaluated again. Time is that of
both stages, from their logs: training, validation, latent statistics, cache and samples, without this evaluation.
"""

import argparse
import json
import os
import sys
from argparse import Namespace
from pathlib import Path

from benchmarks.claims.charts import svg
from benchmarks.claims.claim import Chart, Series
from latentdiff import cli
from latentdiff.evaluation import run
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.distributed import init_distributed
from latentdiff.training.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULT, PLOT = ROOT / "benchmarks" / "results" / "curve.json", ROOT / "docs" / "curve.svg"


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--every", type=int, default=1, help="evaluate only checkpoints at multiples of this step")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(argv)
    if options.run:
        evaluate(run_dir.find_run(options.run), options.prompts, options.every)
    points = json.loads(RESULT.read_text())["points"]
    PLOT.write_text(svg(chart(points)))
    for point in points:
        print(f"  {point['minutes']:5.1f} min  step {point['step']:>6,}  {point['prompt_accuracy']:.3f}  "
              f"held-out pairs {point['prompt_accuracy_held_out']:.3f}")  # fmt: skip


def evaluate(folder: Path, prompts: int, every: int) -> None:
    """Evaluate the checkpoints without a result, the oldest first."""
    first_stage = run_dir.read_recipe(folder, DiffusionRecipe).autoencoder.path
    log = [] if first_stage.endswith(".py") else read_metrics(run_dir.find_run(first_stage) / "metrics.jsonl")
    stage_one_seconds = log[-1]["seconds"] if log else 0.0
    seconds = {line["step"]: line["seconds"] for line in read_metrics(folder / "metrics.jsonl") if "seconds" in line}
    points = json.loads(RESULT.read_text())["points"] if RESULT.exists() else []
    for path in checkpoint.list_checkpoints(folder / "checkpoints"):
        step = int(path.name.removeprefix("step_"))
        if step % every or any(point["step"] == step for point in points):
            continue
        point = {"step": step, "prompts": prompts, "minutes": round((stage_one_seconds + seconds[step]) / 60, 2)}
        points.append(point | prompt_metrics(folder, path, prompts))
        points.sort(key=lambda point: point["step"])
        checkpoint.write_json(RESULT, {"run": folder.name, "points": points})


def prompt_metrics(folder: Path, path: Path, prompts: int) -> dict[str, float]:
    """Prompt accuracy of images sampled with the EMA weights of a checkpoint."""
    options = Namespace(prompts=prompts, sampler=None, steps=None, guidance_scale=None, split="val", batch_size=50,
                        summary=False)  # fmt: skip
    world = init_distributed()
    metrics, _ = run.prompt_metrics(run.open_run(str(as_run(folder, path)), world), options, world)
    return {name: value for name, value in metrics.items() if "_accuracy" in name}


def as_run(folder: Path, path: Path) -> Path:
    """A folder with the files of a finished run, whose weights are those of the checkpoint."""
    target = folder / "curve" / path.name
    target.mkdir(parents=True, exist_ok=True)
    links = {"recipe.json": folder / "recipe.json", "tokenizer.json": folder / "tokenizer.json",
             "autoencoder": folder / "autoencoder", "model.safetensors": path / "ema.safetensors"}  # fmt: skip
    for name, source in links.items():
        if not (target / name).exists():
            os.symlink(source.resolve(), target / name)
    return target


def chart(points: list[dict]) -> Chart:
    minutes, series = [round(point["minutes"], 1) for point in points], []
    for title, name in (("all prompts", "prompt_accuracy"), ("pairs never trained on", "prompt_accuracy_held_out")):
        series.append(Series(title, minutes, *([p[name + end] for p in points] for end in ("", "_low", "_high"))))
    return Chart("minutes", "prompt accuracy", series)


if __name__ == "__main__":
    sys.argv[0] = "curve"
    cli.run(main)
