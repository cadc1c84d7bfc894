"""The demo of today beside the demo that speed is counted from: both train, at once, a thread each.

    python -m benchmarks demo [--steps N] [--autoencoder-steps N] [--before-steps N --before-autoencoder-steps N]

Commit a559c5c is checked out into a temporary folder and its `make demo` is run as it was, beside today's. Each judges
its own pictures; seconds are from the first training step to the last sample. benchmarks/results/bench-demo.json is
written if the earlier one ran in full.
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
SHIPPED = tuple(read_recipe(ROOT / "recipes" / stage / "demo.py", kind).train.steps for stage, kind in STAGES.items())
STEPS = {"before": (5000, 4000), "today": SHIPPED}  # of the two stages


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for prefix, name in (("", "today"), ("before-", "before")):
        parser.add_argument(f"--{prefix}autoencoder-steps", type=int, default=STEPS[name][0])
        parser.add_argument(f"--{prefix}steps", type=int, default=STEPS[name][1])
    o = parser.parse_args(words)
    steps = {"before": (o.before_autoencoder_steps, o.before_steps), "today": (o.autoencoder_steps, o.steps)}
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git("worktree", "add", "--detach", tree, BEFORE)
        try:
            found = both({"before": tree, "today": ROOT}, steps, Path(folder))
        finally:
            git("worktree", "remove", "--force", tree)
    found |= {"gain": round(found["before"]["seconds"] / found["today"]["seconds"], 3)}
    for name in ("before", "today"):
        print(f"  {name:<8}{found[name]['prompt_accuracy']:.3f} of the prompts, {found[name]['psnr']:.1f} dB, "
              f"{found[name]['seconds']:.0f} s")  # fmt: skip
    print(f"  today's takes 1/{found['gain']:.2f} of the time")
    if steps["before"] == STEPS["before"]:
        checkpoint.write_json(RESULT, found)


def git(*words: object) -> None:
    done = subprocess.run(["git", *map(str, words)], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise UserError(
            f"git {words[0]} {words[1]}: {done.stderr.strip()}; the demo of {BEFORE} is in the full history"
        )


def both(trees: dict[str, Path], steps: dict[str, tuple[int, int]], folder: Path) -> dict[str, dict]:
    """Each demo's summary and steps; they run at the same time."""
    running = {name: demo(tree, steps[name], folder / name) for name, tree in trees.items()}
    try:
        ended = {name: process.wait() for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    for name, code in ended.items():
        if code:
            raise UserError(f"the demo of {name} ended with {code}; what it said is above")
    summaries = {name: json.loads((folder / name / "demo/summary.json").read_text()) for name in trees}
    return {name: summaries[name] | {"steps": steps[name]} for name in trees}


def demo(tree: Path, steps: tuple[int, int], runs: Path) -> subprocess.Popen:
    """`make demo` without the pictures at its end."""
    commands = [
        f"train_autoencoder.py recipes/autoencoder/demo.py train.steps={steps[0]}",
        f"train_diffusion.py recipes/diffusion/demo.py train.steps={steps[1]}",
        "evaluate.py demo --summary",
    ]
    told = {"LATENTDIFF_RUNS": str(runs), "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    line = " && ".join(f"'{sys.executable}' {command}" for command in commands)
    return subprocess.Popen(["sh", "-c", line], cwd=tree, env=dict(os.environ) | told)


if __name__ == "__main__":
    cli.run(main)
