"""Which tar shards there are, where their indices lie, and which rows are of a split."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from latentdiff.config import UserError
from latentdiff.data import tar_index
from latentdiff.data.listing import scan, split_of
from latentdiff.training.progress import track


class Span(NamedTuple):
    """The rows of one shard's index that a split has."""

    shard: str
    path: str
    index: Path
    rows: range
    pixels: str  # hash of their names and sizes


def open_shards(path: str, index: str) -> tuple[list[Span], list[dict]]:
    """Every shard with all its rows, and what its index says; indices that are missing are made."""
    root, shards = _names(path)
    homes = [Path(index)] if index else [Path(root, ".latentdiff"), _cache(root)]
    spans, facts = [None] * len(shards), [None] * len(shards)
    ranks, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    start = rank * len(shards) // ranks  # ranks begin at different shards, so they share the work
    for i in track([*range(start, len(shards)), *range(start)], len(shards), "index of the shards"):
        file = os.path.join(root, shards[i])
        place, facts[i] = _open_index(file, [home / f"{shards[i]}.safetensors" for home in homes], shards[i])
        spans[i] = Span(shards[i], file, place, range(facts[i]["count"]), facts[i]["pixels"])
    return spans, facts


def _names(path: str) -> tuple[str, list[str]]:
    """The folder, and the names of the shards below it."""
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", [os.path.basename(path)]
    if not os.path.isdir(path):
        raise UserError(f"data.path={path!r} does not exist (looked for {os.path.abspath(path)})")
    names = sorted(scan(path))
    shards = [name for name in names if name.lower().endswith(".tar")]
    if not shards:
        compressed = [name for name in names if ".tar." in name or name.endswith(".tgz")]
        what = f"it holds {', '.join(names[:8]) or 'nothing'}"
        if compressed:
            what = f"{compressed[0]} is compressed and cannot be read at any place: unpack it to a .tar"
        raise UserError(f"data.path={path!r} holds no .tar; {what}")
    return path, shards


def _cache(root: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "latentdiff", hashlib.blake2b(os.path.abspath(root).encode(), digest_size=8).hexdigest())


def _open_index(path: str, places: list[Path], shard: str) -> tuple[Path, dict]:
    """The first index that fits the shard; else it is made, at the first place that can be written."""
    for index in places:
        facts = tar_index.read_facts(path, index)
        if facts is not None:
            return index, facts
    for index in places:
        try:
            tar_index.index_shard(path, shard, index)
        except OSError as error:
            reason = error
            continue
        facts = tar_index.read_facts(path, index)
        if facts is None:
            raise UserError(f"{path} changed while it was read; start again when it is complete")
        return index, facts
    raise UserError(f"cannot write the index of {path}: {reason.strerror}; name a folder for it: data.index=FOLDER")


def of_split(spans: list[Span], split: str, share: float) -> list[Span]:
    """The rows of a split; without shards for val, those whose mark is below the share, which stand first."""
    splits = {span.shard: "train" if len(spans) == 1 else split_of(span.shard) for span in spans}
    if "val" in splits.values() or split == "test" or not share:
        return [span for span in spans if splits[span.shard] == split and span.rows]
    spans = [span for span in spans if splits[span.shard] == "train" and span.rows]
    cut = int(share * 2**63)
    if sum(len(span.rows) for span in spans) > 1:  # a small set gives at least one
        cut = max(cut, min(tar_index.first_mark(span.index) for span in spans) + 1)
    held = [tar_index.rows_below(span.index, cut) for span in spans]
    rows = [span.rows[:n] if split == "val" else span.rows[n:] for span, n in zip(spans, held)]
    return [span._replace(rows=some) for span, some in zip(spans, rows) if some]
