"""What a folder of pictures, of tar shards or of COCO holds, as training will see it, and how to mend what is wrong.

    python -m latentdiff.data.check PATH [--caption COLUMN] [--size N] [--sample N] [--threads N] [--json]

PATH              a folder of pictures, a folder of .tar shards (or one .tar), or a folder with COCO's annotations
--caption COLUMN  the column of the captions (data.caption; default: text)
--size N          data.size: what counts as a small picture (default 256)
--sample N        decode at most N pictures of each split, spread evenly (default: all)
--threads N       that decode (default: one per processor)
--json            the whole report as JSON

Ends with 0 where all is fine, 1 where there are problems, 2 where PATH cannot be opened at all.
"""

import argparse
import json
import os
import sys
from posixpath import basename, splitext
from typing import Any

from latentdiff.config import UserError, short_name
from latentdiff.data.coco import KINDS, CocoConfig
from latentdiff.data.findings import Finding, of_files, of_splits
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import scan
from latentdiff.data.survey import Survey, looks
from latentdiff.data.tar import TarConfig, TarDataset

DATASETS = {FolderConfig: FolderDataset, CocoConfig: FolderDataset, TarConfig: TarDataset}


def main(words: list[str]) -> int:
    """-> 0 fine, 1 problems."""
    options = _options(words)
    config = recognise(options.path, options.caption)
    opened = {}
    for split in ("train", "val", "test"):
        try:
            data = DATASETS[type(config)](config, split)
        except UserError:
            if split == "train":
                raise
            continue  # there is no test/
        if len(data):
            opened[split] = data
    surveys = {}
    for split, data in opened.items():
        count = min(options.sample or len(data), len(data))
        surveys[split] = Survey(looks(data, count, split, options.threads))
    max_bad = FolderConfig().max_bad_fraction
    found = [*of_files(opened["train"]), *of_splits(opened, surveys, options.size, max_bad)]
    report = {"path": options.path, "kind": short_name(type(config)), "splits": {}}
    for split, survey in surveys.items():
        report["splits"][split] = {"pictures": len(opened[split]), **survey.to_dict(opened[split].label_names)}
    text = (
        json.dumps(report | {"findings": [f._asdict() for f in found]}, indent=1)
        if options.json
        else _text(report, found)
    )
    encoding = sys.stdout.encoding or "utf-8"  # a file's name may be of any bytes
    print(text.encode(encoding, "backslashreplace").decode(encoding))
    return int(any(finding.problem for finding in found))


def recognise(path: str, caption: str = "text") -> FolderConfig | CocoConfig | TarConfig:
    """The configuration that reads what lies there."""
    if os.path.isfile(path) and path.lower().endswith(".tar"):
        return TarConfig(path, max_bad_fraction=1.0, caption=caption)
    if not os.path.isdir(path):
        what = "is neither a folder nor a .tar" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path} {what}; give a folder of pictures, of .tar shards, or with COCO's annotations")
    names = list(scan(path))
    if any(name.lower().endswith(".tar") for name in names) and not any(map(_is_picture, names)):
        return TarConfig(path, max_bad_fraction=1.0, caption=caption)
    tables = any(basename(name) in ("metadata.jsonl", "metadata.csv") for name in names)
    if not tables and any(name.endswith(".json") and basename(name).startswith(KINDS) for name in names):
        return CocoConfig(path, max_bad_fraction=1.0)
    return FolderConfig(path, max_bad_fraction=1.0, caption=caption)


def _is_picture(name: str) -> bool:
    return splitext(name)[1].lower() in EXTENSIONS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def _options(words: list[str]) -> argparse.Namespace:
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("path")
    parser.add_argument("--caption", default="text")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(words)
    for name, least in (("size", 1), ("sample", 0), ("threads", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name} {getattr(options, name)}: it must be at least {least}")
    return options


def _text(report: dict[str, Any], found: list[Finding]) -> str:
    """The report for a reader."""
    lines = [f"{report['path']}: {report['kind']}"]
    for split, facts in report["splits"].items():
        sample = "" if facts["looked_at"] == facts["pictures"] else f" ({facts['looked_at']:,} of them looked at)"
        lines.append(f"{split}: {facts['pictures']:,} picture{'s' * (facts['pictures'] != 1)}{sample}")
        for side in ("width", "height"):
            lines.append(f"  {side:<10}" + ", ".join(f"{name} {value:,}" for name, value in facts[side].items()))
        for name in ("formats", "modes", "classes"):
            shown = list(facts[name].items())
            more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
            if shown:
                lines.append(f"  {name:<10}" + ", ".join(f"{key} {n:,}" for key, n in shown[:12]) + more)
        said = facts["captions"]
        if said["count"]:
            tokens = ", ".join(f"{name} {value}" for name, value in said["tokens"].items())
            lines.append(f"  captions  {said['count']:,}, {said['distinct']:,} of them distinct; tokens: {tokens}")
    for title, wanted in (("to mend", True), ("to know", False)):
        for finding in found:
            if finding.problem == wanted:
                lines += [
                    f"{title}: {finding.what}",
                    *(f"    {line}" for line in finding.examples),
                    f"  -> {finding.mend}",
                ]
    problems = sum(finding.problem for finding in found)
    return "\n".join([*lines, f"{problems} problem{'s' * (problems != 1)} found" if problems else "fine"])


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        sys.exit(0)
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
