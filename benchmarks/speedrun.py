"""What each option of stage two gains: short trainings with the network, data and autoencoder of the demo.

    python -m benchmarks speedrun [ARM ...] [--steps 1500] [--seeds 3] [--count 1000] [--parallel 1]
                                  [--autoencoder demo-autoencoder]
    python -m benchmarks speedrun --page      write benchmarks/results/speedrun.md from the results

An arm is the list of fields in which it differs from its baseline. A finished arm writes
benchmarks/results/speedrun/ARM-SEED.json and is skipped from then on. All arms share data, order, noise, prompts per
seed and the feature network, and are sampled with 50 ancestral steps, as in the paper. They are compared in pairs: mean
difference over the seeds, its 95 % t interval, and the sign of each seed.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.claims.autoencoders import feature_net
from benchmarks.claims.claim import Setting
from latentdiff import cli
from latentdiff.config import UserError, hash_of, override, read_recipe
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speedrun"
RECIPE = "recipes/diffusion/demo.py"
PAPER = (
    "schedule.kind=scaled_linear",
    "schedule.beta_start=0.0015",
    "schedule.beta_end=0.0195",
    "schedule.snr_shift=1",
    "objective.prediction=eps",
    "objective.timestep_sampling=uniform",
    "train.optimizer=adamw",
)
FLOW = (
    "schedule.kind=flow",
    "schedule.snr_shift=1",
    "objective.prediction=flow",
    "objective.timestep_sampling=uniform",
    "train.optimizer=adamw",
)
LOGIT_NORMAL = (*FLOW, "objective.timestep_sampling=logit_normal")
MUON = (*LOGIT_NORMAL, "train.optimizer=muon")
ARMS = {  # name -> (its baseline, the fields)
    "paper": ("paper", PAPER),
    "min-snr": ("paper", (*PAPER, "objective.weighting=min_snr")),
    "flow": ("paper", FLOW),
    "logit-normal": ("flow", LOGIT_NORMAL),
    "shift": ("logit-normal", (*LOGIT_NORMAL, "schedule.snr_shift=2")),
    "muon": ("logit-normal", MUON),
    "paper, three times as long": ("muon", PAPER),
}
REMOVED = {"modern-blocks": "muon"}  # arms of options that no longer exist -> their baseline
LENGTHS = {"paper, three times as long": 3}
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # by degrees of freedom
METRICS = {"prompt_accuracy": 1, "kid": -1}  # 1: higher is better


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="images that an arm is evaluated on")
    parser.add_argument("--autoencoder", default="demo-autoencoder")
    parser.add_argument("--parallel", type=int, default=1, help="number of arms that train at once, for a large GPU")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(argv)
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown:
        raise UserError(f"there is no arm {unknown[0]!r}; it must be one of {', '.join(ARMS)}")
    if not options.page:
        feature_net(Setting())
        # all arms of a seed before the next seed, so that the first table is complete early
        runs = [(name, seed) for seed in range(options.seeds) for name in options.arms or ARMS]
        with ThreadPoolExecutor(options.parallel) as pool:
            list(pool.map(lambda arm: measure(*arm, options), runs))
    page = table()
    (RESULTS.parent / "speedrun.md").write_text(page)
    print(page)


def measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and evaluate one arm, unless it has a result."""
    folder = run_dir.runs_root() / "speedrun" / f"{name}-{seed}".replace(", ", "-").replace(" ", "-")
    path, fields = RESULTS / f"{folder.name}.json", overrides(name, seed, options)
    if path.exists():
        return
    run_script("train_diffusion.py", RECIPE, *fields, f"name=speedrun/{folder.name}")
    run_script("evaluate.py", folder, "--count", options.count, "--features", feature_net(Setting()), "--no-report")
    metrics = flatten(json.loads((folder / "evaluation.json").read_text()))
    seconds = read_metrics(folder / "metrics.jsonl")[-1]["seconds"]
    recipe = override(read_recipe(ROOT / RECIPE, DiffusionRecipe), list(fields))
    head = {"arm": name, "seed": seed, "steps": recipe.train.steps, "count": options.count, "recipe": hash_of(recipe)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    metrics = {metric: metrics[metric] for metric in METRICS}
    checkpoint.write_json(path, head | metrics | {"seconds": round(seconds, 1), "parallel": options.parallel})


def overrides(name: str, seed: int, options: argparse.Namespace) -> tuple[str, ...]:
    """The changes of an arm to the demo's recipe."""
    steps = options.steps * LENGTHS.get(name, 1)
    every = [f"train.{event}_every={steps}" for event in ("val", "sample", "checkpoint")]
    return (f"autoencoder={options.autoencoder}", f"train.steps={steps}", f"train.seed={seed}", *every,
            "sampling.steps=50", "train.cuda_graph=true", *ARMS[name][1])  # fmt: skip


def run_script(name: str, *args: object) -> None:
    print(" ".join(map(str, (name, *args))), flush=True)
    process = subprocess.run([sys.executable, ROOT / name, *map(str, args)], cwd=ROOT, env=dict(os.environ))
    if process.returncode:
        raise UserError(f"{name} exited with code {process.returncode}; its output is above")


def flatten(metrics: dict) -> dict:
    """Nested metrics by their own name."""
    nested = [flatten(value) for value in metrics.values() if isinstance(value, dict)]
    return {key: value for inner in nested for key, value in inner.items()} | metrics


# ---- the page, from the results


def table() -> str:
    """Markdown: the metrics of each arm, and its differences from its baseline."""
    results: dict[str, dict[int, dict]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        results.setdefault(result["arm"], {})[result["seed"]] = result
    lines = ["# Speedrun", "", __doc__.split("\n\n")[0], ""]
    lines += ["| arm | baseline | prompt accuracy | difference | KID x 1000 | difference | seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, baseline in ({name: baseline for name, (baseline, _) in ARMS.items()} | REMOVED).items():
        if name in results:
            lines.append(row(name, results[name], baseline, results.get(baseline, {})))
    lines += ["", "Differences: mean over the seeds with its 95 % t interval, and the sign of each seed, + for better.",
              f"No longer available: {', '.join(REMOVED)}."]  # fmt: skip
    return "\n".join(lines) + "\n"


def row(name: str, results: dict[int, dict], baseline: str, baseline_results: dict[int, dict]) -> str:
    cells = [name, "" if baseline == name else baseline]
    for metric, sign in METRICS.items():
        factor = 1000 if metric == "kid" else 1
        values = [factor * result[metric] for result in results.values() if metric in result]
        cells.append(f"{statistics.mean(values):.3f}" if values else "")
        seeds = sorted(s for s in results.keys() & baseline_results.keys()
                       if metric in results[s] and metric in baseline_results[s])  # fmt: skip
        differences = [factor * (results[s][metric] - baseline_results[s][metric]) for s in seeds]
        cells.append("" if baseline == name or not differences else difference(differences, sign))
    return "| " + " | ".join([*cells, f"{statistics.mean(r['seconds'] for r in results.values()):.0f}"]) + " |"


def difference(differences: list[float], sign: int) -> str:
    signs = "".join("+" if sign * d > 0 else "-" for d in differences)
    if len(differences) < 2:
        return f"{differences[0]:+.3f} ({signs})"
    half = T_95.get(len(differences) - 1, 1.96) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{statistics.mean(differences):+.3f} ± {half:.3f} ({signs})"


if __name__ == "__main__":
    sys.argv[0] = "speedrun"
    cli.run(main)
