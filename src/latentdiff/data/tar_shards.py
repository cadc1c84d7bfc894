"""The tar shards of a folder, their indices, and the entries of a split."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

from latentdiff.config import UserError
from latentdiff.data import tar_index
from latentdiff.data.listing import scan, split_of
from latentdiff.training.progress import track


class Span(NamedTuple):
    """The entries of the index of one shard that belong to a split."""

    shard: str
    path: str
    index: Path
    entries: range
    pixels: str  # hash of the names and sizes of the images


def open_shards(path: str, index: str) -> tuple[list[Span], list[dict]]:
    """Every shard with all its entries, and the facts of its index; missing indices are created."""
    root, shards = _names(path)
    folders = [Path(index)] if index else [Path(root, ".latentdiff"), _cache(root)]
    spans, facts = [None] * len(shards), [None] * len(shards)
    ranks, rank = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("RANK", "0")))
    start = rank * len(shards) // ranks  # ranks start at different shards, to divide the work
    for i in track([*range(start, len(shards)), *range(start)], len(shards), "index of the shards"):
        file = os.path.join(root, shards[i])
        path, facts[i] = _open_index(file, [folder / f"{shards[i]}.safetensors" for folder in folders], shards[i])
        spans[i] = Span(shards[i], file, path, range(facts[i]["count"]), facts[i]["pixels"])
    return spans, facts


def _names(path: str) -> tuple[str, list[str]]:
    """The folder, and the names of the shards in it."""
    if os.path.isfile(path):
        return os.path.dirname(path) or ".", [os.path.basename(path)]
    if not os.path.isdir(path):
        raise UserError(f"data.path={path!r} does not exist (looked for {os.path.abspath(path)})")
    names = sorted(scan(path))
    shards = [name for name in names if name.lower().endswith(".tar")]
    if not shards:
        compressed = [name for name in names if ".tar." in name or name.endswith(".tgz")]
        problem = f"it holds {', '.join(names[:8]) or 'nothing'}"
        if compressed:
            problem = f"{compressed[0]} is compressed, which prevents random access: decompress it to a .tar"
        raise UserError(f"data.path={path!r} holds no .tar; {problem}")
    return path, shards


def _cache(root: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base, "latentdiff", hashlib.blake2b(os.path.abspath(root).encode(), digest_size=8).hexdigest())


def _open_index(path: str, candidates: list[Path], shard: str) -> tuple[Path, dict]:
    """The first valid index of the shard; if there is none, it is created in the first folder that is writable."""
    for index in candidates:
        facts = tar_index.read_facts(path, index)
        if facts is not None:
            return index, facts
    for index in candidates:
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


def spans_of_split(spans: list[Span], split: str, fraction: float) -> list[Span]:
    """The entries of a split; without validation shards, val has those whose mark is below the fraction: the first."""
    splits = {span.shard: "train" if len(spans) == 1 else split_of(span.shard) for span in spans}
    if "val" in splits.values() or split == "test" or not fraction:
        return [span for span in spans if splits[span.shard] == split and span.entries]
    spans = [span for span in spans if splits[span.shard] == "train" and span.entries]
    cut = int(fraction * 2**63)
    if sum(len(span.entries) for span in spans) > 1:  # at least one entry
        cut = max(cut, min(tar_index.first_mark(span.index) for span in spans) + 1)
    counts = [tar_index.entries_below(span.index, cut) for span in spans]
    parts = [span.entries[:n] if split == "val" else span.entries[n:] for span, n in zip(spans, counts)]
    return [span._replace(entries=entries) for span, entries in zip(spans, parts) if entries]
