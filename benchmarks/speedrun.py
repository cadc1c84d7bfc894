"""What each option of stage two is worth: the demo's network, data and autoencoder, the same short training.

    python -m benchmarks speedrun [ARM ...] [--steps 1500] [--seeds 3] [--count 1000] [--at-once 1]
                                  [--autoencoder demo-autoencoder]
    python -m benchmarks speedrun --page      write benchmarks/results/speedrun.md from the results alone

An arm is the list of fields in which it differs from its base; every arm that is finished leaves
benchmarks/results/speedrun/ARM-SEED.json and is skipped from then on. Arms share data, order, noise, prompts by seed,
and the network that judges; all are drawn with the paper's ancestral sampler in 50 steps. So they are compared
pairwise: mean difference and 95 % t interval over the seeds, and the sign in each.
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

from benchmarks.claims.autoencoders import judge
from benchmarks.claims.claim import Setting
from latentdiff import cli
from latentdiff.config import UserError, hash_of, override, read_recipe
from latentdiff.recipe import DiffusionRecipe
from latentdiff.training import checkpoint, run_dir
from latentdiff.training.log import read_metrics

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "speedrun"
RECIPE = "recipes/diffusion/demo.py"
PAPER = ("schedule.kind=scaled_linear", "schedule.beta_start=0.0015", "schedule.beta_end=0.0195", "schedule.snr_shift=1",
         "objective.prediction=eps", "objective.timestep_sampling=uniform", "train.optimizer=adamw")  # fmt: skip
FLOW = ("schedule.kind=flow", "schedule.snr_shift=1", "objective.prediction=flow", "objective.timestep_sampling=uniform",
        "train.optimizer=adamw")  # fmt: skip
MIDDLE = (*FLOW, "objective.timestep_sampling=logit_normal")
MUON = (*MIDDLE, "train.optimizer=muon")
ARMS = {  # name -> (what it is compared with, the fields)
    "paper": ("paper", PAPER),
    "min-snr": ("paper", (*PAPER, "objective.weighting=min_snr")),
    "flow": ("paper", FLOW),
    "logit-normal": ("flow", MIDDLE),
    "shift": ("logit-normal", (*MIDDLE, "schedule.snr_shift=2")),
    "muon": ("logit-normal", MUON),
    "modern-blocks": ("muon", (*MUON, "unet.blocks=modern")),
    "paper, three times as long": ("muon", PAPER),
}
LONGER = {"paper, three times as long": 3}
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571}  # by degrees of freedom
FIGURES = {"prompt_accuracy": 1, "kid": -1}  # and which way is better


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--count", type=int, default=1000, help="pictures an arm is judged by")
    parser.add_argument("--autoencoder", default="demo-autoencoder")
    parser.add_argument("--at-once", type=int, default=1, help="arms that train side by side: a GPU has room for many")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(words)
    unknown = [name for name in options.arms if name not in ARMS]
    if unknown:
        raise UserError(f"no arm is called {unknown[0]!r}; there are {', '.join(ARMS)}")
    if not options.page:
        judge(Setting())
        # a whole round before the next, so that the first table comes early
        wanted = [(name, seed) for seed in range(options.seeds) for name in options.arms or ARMS]
        with ThreadPoolExecutor(options.at_once) as pool:
            list(pool.map(lambda arm: measure(*arm, options), wanted))
    page = table()
    (RESULTS.parent / "speedrun.md").write_text(page)
    print(page)


def measure(name: str, seed: int, options: argparse.Namespace) -> None:
    """Train and judge one arm, unless its figures are there."""
    folder = run_dir.runs_root() / "speedrun" / f"{name}-{seed}".replace(", ", "-").replace(" ", "-")
    path, words = RESULTS / f"{folder.name}.json", arguments(name, seed, options)
    if path.exists():
        return
    script("train_diffusion.py", RECIPE, *words, f"name=speedrun/{folder.name}")
    script("evaluate.py", folder, "--count", options.count, "--features", judge(Setting()), "--no-report")
    figures = flat(json.loads((folder / "evaluation.json").read_text()))
    seconds = read_metrics(folder / "metrics.jsonl")[-1]["seconds"]
    recipe = override(read_recipe(ROOT / RECIPE, DiffusionRecipe), list(words))
    about = {"arm": name, "seed": seed, "steps": recipe.train.steps, "count": options.count, "recipe": hash_of(recipe)}
    RESULTS.mkdir(parents=True, exist_ok=True)
    found = {name: figures[name] for name in FIGURES}
    checkpoint.write_json(path, about | found | {"seconds": round(seconds, 1), "at_once": options.at_once})


def arguments(name: str, seed: int, options: argparse.Namespace) -> tuple[str, ...]:
    """What the arm changes of the demo's recipe."""
    steps = options.steps * LONGER.get(name, 1)
    every = [f"train.{when}_every={steps}" for when in ("val", "sample", "checkpoint")]
    return (f"autoencoder={options.autoencoder}", f"train.steps={steps}", f"train.seed={seed}", *every,
            "sampling.steps=50", "train.cuda_graph=true", *ARMS[name][1])  # fmt: skip


def script(name: str, *words: object) -> None:
    print(" ".join(map(str, (name, *words))), flush=True)
    done = subprocess.run([sys.executable, ROOT / name, *map(str, words)], cwd=ROOT, env=dict(os.environ), check=False)
    if done.returncode:
        raise UserError(f"{name} ended with {done.returncode}; what it said is above")


def flat(figures: dict) -> dict:
    """Figures of any nesting by their own name."""
    inner = [flat(value) for value in figures.values() if isinstance(value, dict)]
    return {key: value for part in inner for key, value in part.items()} | figures


# ---- the page, from the results alone


def table() -> str:
    """Markdown: each arm's figures, and its differences from its base."""
    found: dict[str, dict[int, dict]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        figures = json.loads(path.read_text())
        found.setdefault(figures["arm"], {})[figures["seed"]] = figures
    lines = ["# Speedrun", "", __doc__.split("\n\n")[0], ""]
    lines += ["| arm | compared with | prompt accuracy | difference | KID x 1000 | difference | seconds |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for name, (base, _) in ARMS.items():
        if name in found:
            lines.append(row(name, found[name], base, found.get(base, {})))
    lines += ["", "Differences: mean over the seeds with its 95 % t interval; + and - are the signs, + the better one."]
    return "\n".join(lines) + "\n"


def row(name: str, ours: dict[int, dict], base: str, theirs: dict[int, dict]) -> str:
    cells = [name, "" if base == name else base]
    for figure, better in FIGURES.items():
        factor = 1000 if figure == "kid" else 1
        values = [factor * f[figure] for f in ours.values() if figure in f]
        cells.append(f"{statistics.mean(values):.3f}" if values else "")
        both = [seed for seed in ours.keys() & theirs.keys() if figure in ours[seed] and figure in theirs[seed]]
        gains = [factor * (ours[seed][figure] - theirs[seed][figure]) for seed in sorted(both)]
        cells.append("" if base == name or not gains else difference(gains, better))
    return "| " + " | ".join([*cells, f"{statistics.mean(f['seconds'] for f in ours.values()):.0f}"]) + " |"


def difference(gains: list[float], better: int) -> str:
    signs = "".join("+" if better * gain > 0 else "-" for gain in gains)
    if len(gains) < 2:
        return f"{gains[0]:+.3f} ({signs})"
    half = T_95.get(len(gains) - 1, 1.96) * statistics.stdev(gains) / math.sqrt(len(gains))
    return f"{statistics.mean(gains):+.3f} ± {half:.3f} ({signs})"


if __name__ == "__main__":
    sys.argv[0] = "speedrun"
    cli.run(main)
