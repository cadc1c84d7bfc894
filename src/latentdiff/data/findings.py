"""What is wrong with a data set, or only worth knowing, and how to mend it."""

import difflib
from collections.abc import Iterator
from posixpath import splitext
from typing import Any, NamedTuple

from latentdiff.data.folder import FolderDataset
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import SPLITS, Listing, scan
from latentdiff.data.survey import Survey

SHOWN = 5  # examples of each


class Finding(NamedTuple):
    """One line of the report."""

    problem: bool  # false: only worth knowing
    what: str
    mend: str
    examples: tuple[str, ...] = ()


def of_splits(opened: dict[str, Any], surveys: dict[str, Survey], size: int, max_bad: float) -> Iterator[Finding]:
    """What the pictures and captions themselves show."""
    train = surveys["train"]
    for split, survey in surveys.items():
        stop = f"they are left out in training, which stops where more than data.max_bad_fraction = {max_bad} of all are bad"
        yield from _some(True, survey.unreadable, f"of {split} cannot be read", f"mend or remove them; {stop}")
        for why, ids in survey.silent.items() if opened[split].has_captions else ():
            mend = "write one; such pictures train the model without a prompt"
            yield from _some(True, [(id, "") for id in ids], f"of {split} whose caption is {why}", mend)
        copies = [(id, f"is the same file as {other}") for id, other in survey.copies]
        yield from _some(False, copies, f"of {split} the same as another", "remove them: they weigh double")
        both = [(id, f"is {train.digests[key]}") for key, id in survey.digests.items() if key in train.digests]
        mend = "remove them from one of the two: what is held out must not be trained on"
        yield from _some(True, both if split != "train" else [], f"of {split} also in train", mend)
    yield from _notes(train, opened["train"], size)


def _notes(survey: Survey, data: Any, size: int) -> Iterator[Finding]:
    total, distinct = len(survey.captions), len(set(survey.captions))
    if total > distinct and getattr(data, "source", "") != "class":
        what = f"{total:,} captions of train, {distinct:,} of them distinct"
        yield Finding(False, what, "more exact captions let prompts tell the pictures apart")
    if small := survey.smaller(size):
        what = f"of {survey.count:,} pictures of train, {small:,} have a side below {size} and will be enlarged"
        yield Finding(False, what, "a smaller data.size, or larger pictures, would be sharper")
    if long := survey.longer(3):
        what = f"of {survey.count:,} pictures of train, {long:,} are more than three times as long as wide"
        yield Finding(False, what, "a crop shows a small part of them; cut them, or set data.width")


def of_files(data: Any) -> Iterator[Finding]:
    """What the names and tables show."""
    mend = "mend or remove them; a table's column file_name counts from the table's own folder"
    yield from _some(True, data.bad, "of tables, archives or annotations of no use", mend, "entries")
    mend = "give each a row, or remove the table: then all pictures are used"
    yield from _some(True, [(id, "") for id in data.orphans], "named in no table, left out", mend)
    if isinstance(data, FolderDataset):
        names = list(scan(data.config.path))
        yield from _names(data.listing, names)
        yield from _texts(data.listing, names)
        yield from _labels(data.listing)
    if not data.has_captions:
        mend = (
            "write x.txt beside x.jpg or a metadata.jsonl; without, only unconditional and class models can be trained"
        )
        columns = sorted(getattr(getattr(data, "listing", None), "columns", ()))
        if columns:
            mend = f"name the column that holds them: data.caption=... (of {', '.join(columns)})"
        yield Finding(False, "there are no captions", mend)


def _names(listing: Listing, names: list[str]) -> Iterator[Finding]:
    """Tables and folders whose names come near to what is read."""
    tables = dict.fromkeys(name for name in listing.unread if "metadata" in name.lower() or not listing.rows)
    mend = "rename them to metadata.jsonl (or metadata.csv), with the columns file_name and text"
    meant = any("metadata" in name.lower() for name in tables)
    yield from _some(meant, [(name, "") for name in tables], "not read", mend, "tables")
    used = {*listing.orphans, *listing.maps, *(id for ids in listing.splits.values() for id in ids)}
    pictures = [name for name in names if splitext(name)[1].lower() in EXTENSIONS and name not in used]
    yield from _some(
        True, [(name, "") for name in pictures], "outside the folders of the splits", "move them to train/"
    )
    tops = sorted({name.split("/")[0] for name in names if "/" in name} - SPLITS.keys())
    near = [(top, "") for top in tops if difflib.get_close_matches(top.lower(), (*SPLITS, "training", "eval"), 1, 0.8)]
    yield from _some(True, near, "almost named like a split", "the names are train, val and test", "folders")


def _texts(listing: Listing, names: list[str]) -> Iterator[Finding]:
    """Texts that are no captions, but look as if they should be."""
    keys = {splitext(id)[0] for ids in listing.splits.values() for id in ids}
    texts = [name for name in names if splitext(name)[1].lower() in (".txt", ".caption", ".text", ".cap")]
    read = {name for name in texts if name.endswith(".txt") and splitext(name)[0] in keys}
    odd = [(name, "") for name in texts if _key(name) in keys and name not in read]
    yield from _some(True, odd, "beside pictures, not read", "rename them: x.txt beside x.jpg", "texts")
    lone = [(name, "") for name in texts if _key(name) not in keys and name.endswith(".txt")]
    mend = "add the picture, or remove the text"
    yield from _some(True, lone if listing.sidecars else [], "without a picture of its name", mend, "texts")


def _labels(listing: Listing) -> Iterator[Finding]:
    ids = [id for members in listing.splits.values() for id in members]
    without = [(id, "") for id in ids if not {"label", "label_id"} & listing.rows.get(id, {}).keys()]
    if not listing.labels and len(without) < len(ids):
        yield from _some(True, without, "without a label where others have one", "all must have one, or none")


def _key(name: str) -> str:
    """The picture that a text is meant for: a.txt, a.TXT, a.jpg.txt -> a."""
    stem = splitext(name)[0]
    return splitext(stem)[0] if splitext(stem)[1].lower() in EXTENSIONS else stem


def _some(
    problem: bool, entries: list[tuple[str, str]], what: str, mend: str, kind: str = "pictures"
) -> Iterator[Finding]:
    """A finding of as many entries, if there are any."""
    if entries:
        examples = tuple(f"{id}: {reason}" if reason else id for id, reason in entries[:SHOWN])
        yield Finding(
            problem,
            f"{len(entries):,} {kind if len(entries) > 1 else {'entries': 'entry'}.get(kind, kind[:-1])} {what}",
            mend,
            examples,
        )
