"""benchmarks/results/speed.json, the table that is printed, and docs/benchmarks.md, which is made of the JSON alone:
of this one and of what `python -m benchmarks demo` left."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict

from benchmarks.speed.race import ROOT
from benchmarks.speed.work import Row, Work
from latentdiff.training import checkpoint

RESULTS = ROOT / "benchmarks" / "results" / "speed.json"
DEMO = ROOT / "benchmarks" / "results" / "bench-demo.json"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Speed and memory

`make bench` measures this again: ours against diffusers at the same configuration with the same weights, inputs and
precision, and against what the machine can do. Contestants run in processes of their own and take turns, so that what
disturbs one disturbs all; a figure is the median of what pairs of turns gave, with its quartiles. 2x means that the
other takes twice as long. On a GPU ours train with `train.cuda_graph=true`, the two largest networks compiled as well. From
CPUs there are ratios and memory only: seconds would tell of the machine.

This page is made by `python -m benchmarks speed --page` from `benchmarks/results/speed.json` and `bench-demo.json`.
"""
TITLES = {"cpu": "On CPUs", "cuda": "On a GPU"}


def read() -> dict:
    """device -> {"machine": facts, "works": {name: {"rows": [...], "seconds": ...}}}, perhaps with "notes", by hand."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def demo() -> dict:
    """What `python -m benchmarks demo` left, {"before": {...}, "today": {...}}; empty if it was not run."""
    return json.loads(DEMO.read_text()) if DEMO.exists() else {}


def keep(name: str, rows: list[Row], seconds: int, device: str, facts: dict) -> None:
    """Add what was measured; what another machine, or other versions, had measured on such a device goes."""
    found = read()
    if found.get(device, {}).get("machine") != facts:
        found[device] = {"machine": facts, "works": {}}
    found[device]["works"][name] = {"rows": [rounded(asdict(row)) for row in rows], "seconds": seconds}
    RESULTS.parent.mkdir(exist_ok=True)
    checkpoint.write_json(RESULTS, found)


def rounded(row: dict) -> dict:
    """To four digits."""
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}


# ---- text


def figure(row: dict) -> str:
    value, low, high = (number(row[key]) for key in ("value", "low", "high"))
    unit = row["unit"] if row["unit"] in ("x", "%") else f" {row['unit']}"
    return f"{value}{unit}" + ("" if low == high else f" ({low} to {high})")


def number(x: float) -> str:
    digits = 0 if x == 0 or not math.isfinite(x) else max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:,.{digits}f}"


def table(works: Iterable[Work], found: dict, device: str) -> list[str]:
    """Markdown: every row that was measured or has a bar on this device."""
    lines = ["| work | what | measured | bar | met |", "|---|---|---|---|---|"]
    for work in works:
        measured = {
            row["what"]: row for row in found.get(device, {}).get("works", {}).get(work.name, {"rows": []})["rows"]
        }
        bars = {what: bar for what, bar in work.bars.items() if getattr(bar, "cpu" if device == "cpu" else "gpu")}
        if work.gpu and device == "cpu":
            continue
        for what in list(measured) + [what for what in bars if what not in measured]:
            lines.append(line(work, what, measured.get(what), bars.get(what), device))
    return lines


def line(work: Work, what: str, row: dict | None, bar, device: str) -> str:
    asked = "" if bar is None else bar.cpu if device == "cpu" else bar.gpu
    met = ""
    if bar is not None and row is not None:
        met = "yes" if (row["value"] >= asked if bar.sign == ">=" else row["value"] <= asked) else "**no**"
    shown = "not measured" if row is None else figure(row) + (f", {row['note']}" if row["note"] else "")
    return f"| {work.name} | {what} | {shown} | {f'{bar.sign} {asked:g}' if bar else ''} | {met} |"


def demos(found: dict) -> list[str]:
    """Markdown: the demo of today beside the one that speed is counted from."""
    if not found:
        return []
    lines = [
        "## The demo\n",
        "`make bench-demo`: the demo of commit `a559c5c` and today's, trained at once with a thread each, one run each",
        "(`benchmarks/results/bench-demo.json`; on which machine is in `benchmarks/README.md`).\n",
        "| demo | steps of its stages | reconstruction | prompts drawn right | time against today's |",
        "|---|---|---|---|---|",
    ]
    for name, told in (("before", "`a559c5c`"), ("today", "today's")):
        one = found[name]
        time, steps = one["seconds"] / found["today"]["seconds"], " and ".join(f"{n:,}" for n in one["steps"])
        lines.append(f"| {told} | {steps} | {one['psnr']:.1f} dB | {one['prompt_accuracy']:.3f} | {number(time)}x |")
    return [*lines, ""]


def page(works: Iterable[Work], found: dict, demo: dict) -> str:
    works, parts = list(works), [HEAD]
    for device, title in TITLES.items():
        parts.append(f"## {title}\n")
        facts = found.get(device, {}).get("machine")
        told = facts and ", ".join(f"{name} {value}" for name, value in facts.items())
        parts.append(f"{told}.\n" if told else "Not measured: none was at hand.\n")
        parts += [*found.get(device, {}).get("notes", []), *table(works, found, device), ""]
    parts += demos(demo)
    parts += ["## The works\n", *(f"- `{work.name}`: {work.says}" for work in works), ""]
    return "\n".join(parts)


def write(works: Iterable[Work], found: dict) -> None:
    PAGE.write_text(page(works, found, demo()))
