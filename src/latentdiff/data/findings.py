"""Problems of a dataset and how to fix them, and notes about it."""

import difflib
from collections.abc import Iterator, Sequence
from posixpath import splitext
from typing import Any, NamedTuple

from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import SPLITS, Listing, scan
from latentdiff.data.survey import Survey

MAX_EXAMPLES = 5  # of each finding
Entry = str | tuple[str, str]  # id, or id and reason


class Finding(NamedTuple):
    problem: bool  # False: only a note
    description: str
    fix: str
    examples: tuple[str, ...] = ()


def image_findings(splits: dict[str, Any], surveys: dict[str, Survey], size: int) -> Iterator[Finding]:
    """Findings about the content of images and captions. splits: split -> dataset; size: data.size."""
    train = surveys["train"]
    for split, survey in surveys.items():
        limit = f"data.max_bad_fraction = {FolderConfig().max_bad_fraction}"
        fix = f"fix or remove them; training skips them, and stops if their fraction is above {limit}"
        yield from _finding(True, survey.unreadable, f"of {split} cannot be read", fix)
        for reason, ids in survey.without_caption.items() if splits[split].has_captions else ():
            fix = "write one; images without a caption train the unconditional model"
            yield from _finding(True, ids, f"of {split} whose caption is {reason}", fix)
        duplicates = [(id, f"is the same file as {first}") for id, first in survey.duplicates]
        yield from _finding(False, duplicates, f"of {split} the same as another", "remove them: they count twice")
        if split != "train":
            ids = [(id, f"is {train.digests[key]}") for key, id in survey.digests.items() if key in train.digests]
            fix = "remove them from one of the two: held-out images must not be trained on"
            yield from _finding(True, ids, f"of {split} also in train", fix)
    count, distinct = len(train.captions), len(set(train.captions))
    if count > distinct and getattr(splits["train"], "source", "") != "class":
        fix = "with more specific captions, prompts can tell the images apart"
        yield Finding(False, f"{count:,} captions of train, {distinct:,} of them distinct", fix)
    of_train = f"of {train.inspected:,} images of train"
    if small := train.count_smaller(size):
        fix = "use a smaller data.size or larger images"
        yield Finding(False, f"{of_train}, {small:,} have a side below {size} and are enlarged, which blurs them", fix)
    if long := train.count_longer(3):
        fix = "crops show a small part of them; cut them, or set data.width"
        yield Finding(False, f"{of_train}, {long:,} have sides that differ by more than a factor of three", fix)


def file_findings(data: Any) -> Iterator[Finding]:
    """Findings about file names and metadata tables. data: the training split."""
    fix = "fix or remove them; the paths in file_name are relative to the folder of the table"
    yield from _finding(True, data.unreadable, "of tables, archives or annotations cannot be used", fix, "entries")
    fix = "give each a row, or remove the table to use all images"
    yield from _finding(True, data.unlisted, "not listed in a table, not used", fix)
    if isinstance(data, FolderDataset):
        names = list(scan(data.config.path))
        yield from _name_findings(data.listing, names)
        yield from _text_findings(data.listing, names)
        yield from _label_findings(data.listing)
    if not data.has_captions:
        columns = ", ".join(sorted(getattr(getattr(data, "listing", None), "columns", ())))
        fix = f"set data.caption to their column, one of {columns}" if columns else "write x.txt beside x.jpg"
        yield Finding(False, "there are no captions", f"{fix}; without captions, text models cannot be trained")


def _name_findings(listing: Listing, names: list[str]) -> Iterator[Finding]:
    """Tables and folders with names similar to those that are read, and images outside of the splits."""
    is_metadata = {name: "metadata" in name.lower() for name in listing.ignored_tables}
    tables = [name for name, similar in is_metadata.items() if similar or not listing.columns_of]
    fix = "rename them to metadata.jsonl (or metadata.csv), with the columns file_name and text"
    yield from _finding(any(is_metadata.values()), tables, "not read", fix, "tables")
    used = {*listing.unlisted, *listing.maps, *(id for ids in listing.splits.values() for id in ids)}
    outside = [name for name in names if splitext(name)[1].lower() in EXTENSIONS and name not in used]
    yield from _finding(True, outside, "outside the folders of the splits", "move them to train/")
    folders = sorted({name.split("/")[0] for name in names if "/" in name} - SPLITS.keys())
    targets = (*SPLITS, "training", "eval")
    similar = [folder for folder in folders if difflib.get_close_matches(folder.lower(), targets, 1, 0.8)]
    yield from _finding(True, similar, "almost named like a split", "the names are train, val and test", "folders")


def _text_findings(listing: Listing, names: list[str]) -> Iterator[Finding]:
    """Text files that are not read as captions."""
    stems = {splitext(id)[0] for ids in listing.splits.values() for id in ids}
    texts = [name for name in names if splitext(name)[1].lower() in (".txt", ".caption", ".text", ".cap")]
    beside = [name for name in texts if _image_stem(name) in stems]
    unread = [name for name in beside if not (name.endswith(".txt") and splitext(name)[0] in stems)]
    yield from _finding(True, unread, "beside images, not read", "rename them: x.txt beside x.jpg", "texts")
    alone = [name for name in texts if _image_stem(name) not in stems and name.endswith(".txt")]
    fix = "add the image, or remove the text"
    yield from _finding(True, alone if listing.sidecars else [], "without an image of the same name", fix, "texts")


def _label_findings(listing: Listing) -> Iterator[Finding]:
    ids = [id for members in listing.splits.values() for id in members]
    unlabelled = [id for id in ids if not {"label", "label_id"} & listing.columns_of.get(id, {}).keys()]
    if not listing.labels and len(unlabelled) < len(ids):
        yield from _finding(True, unlabelled, "without a label where others have one", "label all images, or none")


def _image_stem(name: str) -> str:
    """Stem of the image that a text is meant for: a.txt, a.TXT, a.jpg.txt -> a."""
    stem = splitext(name)[0]
    return splitext(stem)[0] if splitext(stem)[1].lower() in EXTENSIONS else stem


def _finding(
    problem: bool, entries: Sequence[Entry], description: str, fix: str, noun: str = "images"
) -> Iterator[Finding]:  # fmt: skip
    """A finding about the entries, if there are any. noun: what they are, in the plural."""
    if entries:
        noun = noun if len(entries) > 1 else {"entries": "entry"}.get(noun, noun[:-1])
        examples = tuple(": ".join(filter(None, [e] if isinstance(e, str) else e)) for e in entries[:MAX_EXAMPLES])
        yield Finding(problem, f"{len(entries):,} {noun} {description}", fix, examples)
