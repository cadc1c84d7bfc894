"""Today's demo beside an earlier demo, the baseline of the speed target: both train at once with one thread each.

    python -m benchmarks demo [--steps N] [--autoencoder-steps N] [--before-steps N --before-autoencoder-steps N]

Commit a559c5c is checked out into a temporary folder and its `make demo` is run beside today's. Each evaluates its own
images; seconds are from the first training step to the last sample. benchmarks/results/bench-demo.json is written if
the earlier demo ran in full.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from latentdiff import cli
from latentdiff.config import UserError, read_recipe
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe
from latentdiff.training import checkpoint

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "bench-demo.json"
BEFORE = "a559c5c"
STAGES = {"autoencoder": AutoencoderRecipe, "diffusion": DiffusionRecipe}
TODAY = tuple(read_recipe(ROOT / "recipes" / stage / "demo.py", kind).train.steps for stage, kind in STAGES.items())
STEPS = {"before": (5000, 4000), "today": TODAY}  # of the two stages


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for prefix, name in (("", "today"), ("before-", "before")):
        parser.add_argument(f"--{prefix}autoencoder-steps", type=int, default=STEPS[name][0])
        parser.add_argument(f"--{prefix}steps", type=int, default=STEPS[name][1])
    o = parser.parse_args(argv)
    steps = {"before": (o.before_autoencoder_steps, o.before_steps), "today": (o.autoencoder_steps, o.steps)}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", tree, BEFORE)
        try:
            result = run_both({"before": tree, "today": ROOT}, steps, Path(folder))
        finally:
            git("worktree", "remove", "--force", tree)
    result |= {"speedup": round(result["before"]["seconds"] / result["today"]["seconds"], 3)}
    for name in ("before", "today"):
        print(f"  {name:<8}prompt accuracy {result[name]['prompt_accuracy']:.3f}, {result[name]['psnr']:.1f} dB, "
              f"{result[name]['seconds']:.0f} s")  # fmt: skip
    print(f"  today's demo takes 1/{result['speedup']:.2f} of the time")
    if steps["before"] == STEPS["before"]:
        checkpoint.write_json(RESULT, result)


def git(*args: object) -> None:
    process = subprocess.run(["git", *map(str, args)], cwd=ROOT, capture_output=True, text=True)
    if process.returncode:
        raise UserError(
            f"git {args[0]} {args[1]}: {process.stderr.strip()}; commit {BEFORE} needs a clone with the full history"
        )


def run_both(trees: dict[str, Path], steps: dict[str, tuple[int, int]], folder: Path) -> dict[str, dict]:
    """The summary and the steps of each demo; they run at the same time."""
    processes = {name: start_demo(tree, steps[name], folder / name) for name, tree in trees.items()}
    try:
        codes = {name: process.wait() for name, process in processes.items()}
    finally:
        for process in processes.values():
            process.kill()
    for name, code in codes.items():
        if code:
            raise UserError(f"the demo of {name} exited with code {code}; its output is above")
    summaries = {name: json.loads((folder / name / "demo/summary.json").read_text()) for name in trees}
    return {name: summaries[name] | {"steps": steps[name]} for name in trees}


def start_demo(tree: Path, steps: tuple[int, int], runs: Path) -> subprocess.Popen:
    """`make demo` without its last step, the sampling of prompts."""
    commands = [
        f"train_autoencoder.py recipes/autoencoder/demo.py train.steps={steps[0]}",
        f"train_diffusion.py recipes/diffusion/demo.py train.steps={steps[1]}",
        "evaluate.py demo --summary",
    ]
    environment = {"LATENTDIFF_RUNS": str(runs), "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    line = " && ".join(f"'{sys.executable}' {command}" for command in commands)
    return subprocess.Popen(["sh", "-c", line], cwd=tree, env=dict(os.environ) | environment)


if __name__ == "__main__":
    cli.run(main)
