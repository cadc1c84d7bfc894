"""The paper's claims, each measured by one command.

python -m benchmarks claims                   list them, with their verdicts so far
python -m benchmarks claims NAME ...          measure some; those with a result are skipped unless --again is given
python -m benchmarks claims --quick           all that need less than an hour together on two cores
python -m benchmarks claims --all             all
python -m benchmarks claims --page            write docs/claims.md and its charts from the results

--run RUN     a text-to-shapes run, such as that of `make demo` (default demo)
--count N     pictures of each arm (default 2000)     --device auto|cpu|cuda
--seeds N     of what is trained (default 3)          --again   measure what has a result as well

Results are benchmarks/results/claims/NAME.json; LATENTDIFF_RUNS says where runs lie.
"""

import argparse
import json
import math
import time
from dataclasses import asdict

from benchmarks.claims import autoencoders, models, networks, pages, sampling
from benchmarks.claims.claim import Claim, Result, Setting, results
from latentdiff import cli
from latentdiff.config import UserError
from latentdiff.training import checkpoint

CLAIMS = {claim.name: claim for part in (networks, sampling, autoencoders, models) for claim in part.CLAIMS}


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    for option in ("--quick", "--all", "--page", "--again"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(words)
    unknown = [name for name in options.names if name not in CLAIMS]
    if unknown:
        raise UserError(f"no claim is called {unknown[0]!r}; there are {', '.join(CLAIMS)}")
    setting = Setting(options.run, options.count, seeds=tuple(range(options.seeds)), device=options.device)
    for claim in CLAIMS.values():
        wanted = claim.name in options.names or options.all or (options.quick and claim.quick)
        if wanted and (options.again or not (results() / f"{claim.name}.json").exists()):
            measure(claim, setting)
    if options.page:
        pages.write()
    if not (options.names or options.page):
        listing()


def measure(claim: Claim, setting: Setting) -> None:
    print(f"{claim.name}: {claim.says}", flush=True)
    began = time.monotonic()
    result = claim.measure(setting)
    about = to_json(claim, result) | {"seconds": round(time.monotonic() - began)}
    results().mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(results() / f"{claim.name}.json", about)
    for effect in result.effects:
        print(f"  {effect.what}: {effect.value:.4g} ({effect.low:.4g} to {effect.high:.4g}), {effect.verdict}")
    print(f"  {result.verdict}, after {about['seconds']} s", flush=True)


def to_json(claim: Claim, result: Result) -> dict:
    """Plain numbers to five digits; JSON knows no infinity, so an interval that is not known is null."""
    about = {"name": claim.name, "says": claim.says, "where": claim.where, "verdict": result.verdict} | asdict(result)
    about["effects"] = [asdict(effect) | {"verdict": effect.verdict} for effect in result.effects]
    return _rounded(about)


def _rounded(node: object) -> object:
    if isinstance(node, dict):
        return {name: _rounded(value) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_rounded(value) for value in node]
    if isinstance(node, float):
        return float(f"{node:.5g}") if math.isfinite(node) else None
    return node


def listing() -> None:
    for claim in CLAIMS.values():
        path = results() / f"{claim.name}.json"
        verdict = json.loads(path.read_text())["verdict"] if path.exists() else f"not measured, ~{claim.minutes:g} min"
        print(f"  {claim.name:<20}{verdict:<24}{claim.says}")


if __name__ == "__main__":
    cli.run(main)
