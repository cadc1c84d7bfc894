"""docs/claims.md and its charts, from the committed results alone."""

import json
from pathlib import Path

from benchmarks.claims.charts import svg
from benchmarks.claims.claim import VERDICTS, Chart, Series, results

DOCS = Path(__file__).resolve().parents[2] / "docs"

HEAD = """# The paper's claims, measured

Each claim of *High-Resolution Image Synthesis with Latent Diffusion Models* that a small machine can test: what it
says, what we saw, and how sure that is. This page is made by `python -m benchmarks claims --page` from
`benchmarks/results/claims/*.json`; what goes against the paper stands here like the rest.

A claim **holds** when the 95 % interval of each of its effects lies on the expected side, is **contrary** when one lies
on the other side, and is **not seen** otherwise. Sampling claims: bootstrap over pictures that were drawn from the same
noise in all arms. Training claims: paired t interval over seeds. Everything is small (32 x 32 drawings, minutes of
training), so a verdict is about the direction of an effect, not about the paper's numbers.
"""


def page(found: list[dict]) -> dict[str, str]:
    """Path under docs/ -> content."""
    files, rows, parts = {}, [], []
    for one in found:
        first = one["effects"][0]
        rows.append(f"| [{one['name']}](#{one['name']}) | {one['says']} | {one['where']} | **{one['verdict']}** | "
                    f"{first['what']}: {span(first)} |")  # fmt: skip
        parts.append(f"\n## {one['name']}\n\n{one['says']} ({one['where']})\n\n**{one['verdict'].capitalize()}.**\n")
        parts += [f"- {e['what']}: {span(e)}, expected {e['expect']}: {e['verdict']}" for e in one["effects"]]
        parts.append("")
        for i, chart in enumerate(one["charts"]):
            path = f"claims/{one['name']}-{i}.svg"
            files[path] = svg(Chart(**chart | {"series": [Series(**s) for s in chart["series"]]}))
            parts.append(f"![{chart['y']} over {chart['x']}]({path})")
        parts.append(f"\n{one['data']}. {one['protocol'][:1].upper()}{one['protocol'][1:]}. {one['note']}".rstrip())
    counts = ", ".join(f"{sum(one['verdict'] == v for one in found)} {v}" for v in VERDICTS)
    table = "| claim | the paper says | where | verdict | first effect, 95 % interval |\n|---|---|---|---|---|\n"
    files["claims.md"] = f"{HEAD}\nSo far: {counts}.\n\n{table}" + "\n".join(rows) + "\n" + "\n".join(parts) + "\n"
    return files


def span(effect: dict) -> str:
    low, high = (f"{effect[end]:.3g}" if effect[end] is not None else "unknown" for end in ("low", "high"))
    return f"{effect['value']:.3g} ({low} to {high})"


def read() -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(results().glob("*.json"))]


def write() -> None:
    (DOCS / "claims").mkdir(exist_ok=True)
    for name, content in page(read()).items():
        (DOCS / name).write_text(content)
