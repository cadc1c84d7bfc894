"""The paper's claims, each measured by one command.

python -m benchmarks claims                   list them, with their verdicts so far
python -m benchmarks claims NAME ...          measure some; those with a result are skipped unless --again is given
python -m benchmarks claims --quick           all that take less than an hour together on two cores
python -m benchmarks claims --all             all
python -m benchmarks claims --page            write docs/claims.md and its charts from the results

--run RUN     a text-to-shapes run, such as that of `make demo` (default demo)
--count N     images per arm (default 2000)           --device auto|cpu|cuda
--seeds N     number of training seeds (default 3)    --again   also measure claims that have a result

Results are benchmarks/results/claims/NAME.json; runs are in runs/ (LATENTDIFF_RUNS changes the root).
"""

import argparse
import json
import math
import time
from dataclasses import asdict

from benchmarks.claims import autoencoders, models, networks, pages, sampling
from benchmarks.claims.claim import Claim, Result, Setting, results_dir
from latentdiff import cli
from latentdiff.config import UserError
from latentdiff.training import checkpoint

CLAIMS = {claim.name: claim for module in (networks, sampling, autoencoders, models) for claim in module.CLAIMS}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    for option in ("--quick", "--all", "--page", "--again"):
        parser.add_argument(option, action="store_true")
    parser.add_argument("--run", default="demo")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in CLAIMS]
    if unknown:
        raise UserError(f"there is no claim {unknown[0]!r}; it must be one of {', '.join(CLAIMS)}")
    setting = Setting(options.run, options.count, seeds=tuple(range(options.seeds)), device=options.device)
    for claim in CLAIMS.values():
        selected = claim.name in options.names or options.all or (options.quick and claim.quick)
        if selected and (options.again or not (results_dir() / f"{claim.name}.json").exists()):
            measure(claim, setting)
    if options.page:
        pages.write()
    if not (options.names or options.page):
        print_list()


def measure(claim: Claim, setting: Setting) -> None:
    print(f"{claim.name}: {claim.statement}", flush=True)
    start = time.monotonic()
    result = claim.measure(setting)
    record = to_json(claim, result) | {"seconds": round(time.monotonic() - start)}
    results_dir().mkdir(parents=True, exist_ok=True)
    checkpoint.write_json(results_dir() / f"{claim.name}.json", record)
    for effect in result.effects:
        print(f"  {effect.name}: {effect.value:.4g} ({effect.low:.4g} to {effect.high:.4g}), {effect.verdict}")
    print(f"  {result.verdict}, after {record['seconds']} s", flush=True)


def to_json(claim: Claim, result: Result) -> dict:
    """Plain data with numbers of five digits; JSON has no infinity, so an unknown end of an interval is null."""
    head = {"name": claim.name, "statement": claim.statement, "source": claim.source, "verdict": result.verdict}
    record = head | asdict(result)
    record["effects"] = [asdict(effect) | {"verdict": effect.verdict} for effect in result.effects]
    return _rounded(record)


def _rounded(node: object) -> object:
    if isinstance(node, dict):
        return {name: _rounded(value) for name, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_rounded(value) for value in node]
    if isinstance(node, float):
        return float(f"{node:.5g}") if math.isfinite(node) else None
    return node


def print_list() -> None:
    for claim in CLAIMS.values():
        path = results_dir() / f"{claim.name}.json"
        verdict = json.loads(path.read_text())["verdict"] if path.exists() else f"not measured, ~{claim.minutes:g} min"
        print(f"  {claim.name:<20}{verdict:<24}{claim.statement}")


if __name__ == "__main__":
    cli.run(main)
