"""Report what training will read from a folder of images, tar shards or COCO, and how to fix what is wrong.

    python -m latentdiff.data.check PATH [--caption COLUMN] [--size N] [--sample N] [--threads N] [--json]

PATH              a folder of images, a folder of .tar shards (or one .tar), or a folder with COCO annotations
--caption COLUMN  column of the captions (data.caption; default: text)
--size N          resolution of training (data.size; default: 256), to find images that are smaller
--sample N        decode at most N images of each split, evenly spaced (default: all)
--threads N       threads that decode (default: one per processor)
--json            print the report as JSON

The exit code is 0 without problems, 1 with problems, and 2 if PATH cannot be opened.
"""

import json
import os
import sys
from argparse import Namespace
from posixpath import basename, splitext
from typing import Any

from latentdiff import cli
from latentdiff.config import UserError, short_name
from latentdiff.data.coco import KINDS, CocoConfig
from latentdiff.data.findings import file_findings, image_findings
from latentdiff.data.folder import FolderConfig
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import scan
from latentdiff.data.survey import Survey, measure_images
from latentdiff.data.tar import TarConfig


def main(argv: list[str]) -> int:
    """Print the report; 1 if it lists problems, else 0."""
    options = parse_arguments(argv)
    config = detect_format(options.path, options.caption)
    splits, surveys = open_splits(config), {}
    for split, data in splits.items():
        count = min(options.sample or len(data), len(data))
        surveys[split] = Survey(measure_images(data, count, split, options.threads))
    findings = [*file_findings(splits["train"]), *image_findings(splits, surveys, options.size)]
    stats = {split: {"images": len(data), **surveys[split].to_dict(data.label_names)} for split, data in splits.items()}
    report = {"path": options.path, "format": short_name(type(config)), "splits": stats}
    report["findings"] = [finding._asdict() for finding in findings]
    text = json.dumps(report, indent=1) if options.json else format_report(report)
    encoding = sys.stdout.encoding or "utf-8"  # file names may contain any bytes
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return int(any(finding.problem for finding in findings))


def parse_arguments(argv: list[str]) -> Namespace:
    parser = cli.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("path")
    parser.add_argument("--caption", default="text")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    for name, minimum in (("size", 1), ("sample", 0), ("threads", 1)):
        if getattr(options, name) < minimum:
            raise UserError(f"--{name} {getattr(options, name)}: it must be at least {minimum}")
    return options


def detect_format(path: str, caption: str = "text") -> FolderConfig | CocoConfig | TarConfig:
    """The settings that read the data at `path`, by its file names."""
    if os.path.isfile(path) and path.lower().endswith(".tar"):
        return TarConfig(path, max_bad_fraction=1.0, caption=caption)
    if not os.path.isdir(path):
        problem = "is neither a folder nor a .tar" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {problem}; give a folder of images, of .tar shards, or with COCO annotations")
    names = list(scan(path))
    extensions = {splitext(name)[1].lower() for name in names}
    if ".tar" in extensions and not extensions & EXTENSIONS:
        return TarConfig(path, max_bad_fraction=1.0, caption=caption)
    has_tables = any(basename(name) in ("metadata.jsonl", "metadata.csv") for name in names)
    if not has_tables and any(name.endswith(".json") and basename(name).startswith(KINDS) for name in names):
        return CocoConfig(path, max_bad_fraction=1.0)
    return FolderConfig(path, max_bad_fraction=1.0, caption=caption)


def open_splits(config: FolderConfig | CocoConfig | TarConfig) -> dict[str, Any]:
    """split -> dataset, for the splits that have images; UserError without training images."""
    splits = {"train": config.open("train")}
    for split in ("val", "test"):
        try:
            splits[split] = config.open(split)
        except UserError:
            continue  # there is no test split
    return {split: data for split, data in splits.items() if len(data)}


def format_report(report: dict[str, Any]) -> str:
    """The report as text."""
    lines = [f"{report['path']}: {report['format']}"]
    for split, stats in report["splits"].items():
        inspected = "" if stats["inspected"] == stats["images"] else f" ({stats['inspected']:,} of them inspected)"
        lines.append(f"{split}: {stats['images']:,} image{'s' * (stats['images'] != 1)}{inspected}")
        for name in ("width", "height", "formats", "modes", "classes"):
            counts = [f"{key} {n:,}" for key, n in stats[name].items()]
            more = f" and {len(counts) - 12} more" if len(counts) > 12 else ""
            if counts:
                lines.append(f"  {name:<10}{', '.join(counts[:12])}{more}")
        captions = stats["captions"]
        if captions["count"]:
            tokens = ", ".join(f"{name} {n}" for name, n in captions["tokens"].items())
            lines.append(f"  captions  {captions['count']:,}, {captions['distinct']:,} distinct; tokens: {tokens}")
    findings = sorted(report["findings"], key=lambda finding: not finding["problem"])
    for finding in findings:
        lines.append(f"{'to fix' if finding['problem'] else 'note'}: {finding['description']}")
        lines += [*(f"    {example}" for example in finding["examples"]), f"  -> {finding['fix']}"]
    problems = sum(finding["problem"] for finding in findings)
    return "\n".join([*lines, f"{problems} problem{'s' * (problems != 1)} found" if problems else "no problems found"])


if __name__ == "__main__":
    cli.answer_help(__doc__)
    cli.run(lambda argv: sys.exit(main(argv)))
