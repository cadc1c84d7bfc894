"""Accuracy against time: every checkpoint that a text-to-shapes run has kept, judged as a finished run is.

python -m benchmarks curve RUN [--prompts 500] [--every 1000]       while the run trains or afterwards
python -m benchmarks curve --page                                   docs/curve.svg from the results alone

A checkpoint that is judged leaves a row in benchmarks/results/curve.json and is not judged again. Time is both stages'
own, by the clocks of their logs: training, validation, statistics, cache, samples, without what this command takes.
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
RESULT, PICTURE = ROOT / "benchmarks" / "results" / "curve.json", ROOT / "docs" / "curve.svg"


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--prompts", type=int, default=500)
    parser.add_argument("--every", type=int, default=1, help="judge the checkpoints at multiples of this step only")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(words)
    if options.run:
        judge(run_dir.find_run(options.run), options.prompts, options.every)
    points = json.loads(RESULT.read_text())["points"]
    PICTURE.write_text(svg(chart(points)))
    for point in points:
        print(f"  {point['minutes']:5.1f} min  step {point['step']:>6,}  {point['prompt_accuracy']:.3f}  "
              f"held-out pairs {point['prompt_accuracy_held_out']:.3f}")  # fmt: skip


def judge(folder: Path, prompts: int, every: int) -> None:
    """Measure the checkpoints that have no row yet, the oldest first."""
    first_stage = run_dir.read_recipe(folder, DiffusionRecipe).autoencoder.path
    trained = [] if first_stage.endswith(".py") else read_metrics(run_dir.find_run(first_stage) / "metrics.jsonl")
    before = trained[-1]["seconds"] if trained else 0.0
    seconds = {row["step"]: row["seconds"] for row in read_metrics(folder / "metrics.jsonl") if "seconds" in row}
    known = json.loads(RESULT.read_text())["points"] if RESULT.exists() else []
    for saved in checkpoint.list_checkpoints(folder / "checkpoints"):
        step = int(saved.name.removeprefix("step_"))
        if step % every or any(point["step"] == step for point in known):
            continue
        point = {"step": step, "prompts": prompts, "minutes": round((before + seconds[step]) / 60, 2)}
        known.append(point | figures(folder, saved, prompts))
        known.sort(key=lambda point: point["step"])
        checkpoint.write_json(RESULT, {"run": folder.name, "points": known})


def figures(folder: Path, saved: Path, prompts: int) -> dict[str, float]:
    """What the reader finds of the prompts in pictures drawn with a checkpoint's averaged weights."""
    options = Namespace(prompts=prompts, sampler=None, steps=None, guidance_scale=None, split="val", batch_size=50,
                        summary=False)  # fmt: skip
    found, _ = run.prompted(run.open_subject(str(as_run(folder, saved)), init_distributed()), options, init_distributed())
    return {name: value for name, value in found.items() if name.startswith(("prompt_accuracy", "right_"))}


def as_run(folder: Path, saved: Path) -> Path:
    """A folder beside the run's checkpoints that looks like the run, had it ended there."""
    ended = folder / "curve" / saved.name
    ended.mkdir(parents=True, exist_ok=True)
    links = {"recipe.json": folder / "recipe.json", "tokenizer.json": folder / "tokenizer.json",
             "autoencoder": folder / "autoencoder", "model.safetensors": saved / "ema.safetensors"}  # fmt: skip
    for name, target in links.items():
        if not (ended / name).exists():
            os.symlink(target.resolve(), ended / name)
    return ended


def chart(points: list[dict]) -> Chart:
    minutes, series = [round(point["minutes"], 1) for point in points], []
    for title, name in (("all prompts", "prompt_accuracy"), ("pairs never trained on", "prompt_accuracy_held_out")):
        series.append(Series(title, minutes, *([p[name + end] for p in points] for end in ("", "_low", "_high"))))
    return Chart("minutes", "prompts right", series)


if __name__ == "__main__":
    sys.argv[0] = "curve"
    cli.run(main)
