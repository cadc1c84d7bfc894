"""A small index of a tar shard: the offsets of each image and the files of its key, for random access.

An image is key.jpg, with any extension that Pillow opens; key.txt, key.json and key.cls belong to it. Nothing is
unpacked. Members that cannot be used are listed with the reason.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from posixpath import basename, normpath, splitext
from typing import NamedTuple

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from latentdiff import rng
from latentdiff.data.image import EXTENSIONS, BadImage, check_header
from latentdiff.training.files import atomic_path

VERSION = "2"
PARTS = ("image", "txt", "json", "cls")
MAX_BYTES = {"image": 2**29, "txt": 2**20, "json": 2**24, "cls": 16}  # of a member
COLUMNS = [f"{part}_{field}" for part in PARTS for field in ("start", "size")] + ["name_start", "name_size", "label"]


class Extent(NamedTuple):
    """The position of the content of a member in the archive."""

    name: str
    start: int
    size: int


Sample = dict[str, Extent]  # part -> its extent


def index_shard(path: str, shard: str, index: Path) -> None:
    """Write the index of a shard; `shard` is its name in ids. Raises OSError if it cannot be written."""
    stat = os.stat(path)
    index.parent.mkdir(parents=True, exist_ok=True)
    samples, unreadable = _scan(path, shard)
    # in a random order that does not depend on other shards: the first entries of every shard are held out
    marks = [rng.key("val", f"{shard}/{parts['image'].name}") for parts in samples]
    marked = sorted(zip(marks, samples), key=itemgetter(0))
    names = [parts["image"].name.encode("utf-8", "surrogateescape") for _, parts in marked]
    entries, end = np.zeros((len(marked), len(COLUMNS)), np.int64), 0
    for entry, name, (_, parts) in zip(entries, names, marked):
        entry[:8] = [n for part in PARTS for n in (parts[part][1:] if part in parts else (0, 0))]
        entry[8:] = end, len(name), _number(read_part(path, entry, "cls"))
        end += len(name)
    pixels = hashlib.blake2b(repr([parts["image"][::2] for _, parts in marked]).encode())  # names and sizes
    facts = {
        "version": VERSION, "size": stat.st_size, "mtime": stat.st_mtime_ns, "pixels": pixels.hexdigest()[:32],
        "count": len(entries), "texts": int((entries[:, 3] > 0).sum()),
        "labels": int(entries[:, 10].max(initial=-1)) + 1, "unreadable": unreadable,
    }  # fmt: skip
    tensors = {"marks": np.array([mark for mark, _ in marked], np.int64), "entries": entries}
    tensors["names"] = np.frombuffer(b"".join(names), np.uint8)
    with atomic_path(index) as tmp:
        tmp.write_bytes(save(tensors, {"facts": json.dumps(facts)}))


def read_facts(path: str, index: Path) -> dict | None:
    """The facts of an index about its shard; None if there is no index, or if the shard has changed since."""
    try:
        stat = os.stat(path)
        with safe_open(index, "numpy") as file:
            facts = json.loads(file.metadata()["facts"])
        valid = (facts["version"], facts["size"], facts["mtime"]) == (VERSION, stat.st_size, stat.st_mtime_ns)
        return facts if valid else None
    except Exception:  # missing, damaged or of another version: it is created again
        return None


def entries_below(index: Path, mark: int) -> int:
    """The number of entries with a smaller mark; they come first."""
    with safe_open(index, "numpy") as file:
        return int(np.searchsorted(file.get_tensor("marks"), mark))


def first_mark(index: Path) -> int:
    """The smallest mark of a shard that is not empty."""
    with safe_open(index, "numpy") as file:
        return int(file.get_slice("marks")[:1][0])


def read_entry(index: Path, i: int) -> tuple[np.ndarray, str]:
    """Entry i, int64 [COLUMNS], and the name of its image in the archive."""
    with safe_open(index, "numpy") as file:
        entry = file.get_slice("entries")[i : i + 1][0]
        name = file.get_slice("names")[entry[8] : entry[8] + entry[9]]
    return entry, name.tobytes().decode("utf-8", "surrogateescape")


def read_part(path: str, entry: np.ndarray, part: str) -> bytes:
    """The image, txt, json or cls of an entry; b"" if it has none. Raises OSError if the shard is gone."""
    start, size = entry[2 * PARTS.index(part) :][:2]
    if not size:
        return b""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def _number(content: bytes) -> int:
    """A class number, or -1."""
    text = content.decode("ascii", "replace").strip()
    return int(text) if text.isdecimal() and len(text) < 6 else -1


def _scan(path: str, shard: str) -> tuple[list[Sample], list[tuple[str, str]]]:
    """The images with the files of their keys, and (id, reason) of what cannot be used."""
    images, sidecars, unreadable, length = {}, {}, [], os.path.getsize(path)
    for member, reason in _members(path, length):
        if member is None:
            unreadable.append((shard, reason))
            continue
        name, part = normpath(member.name), _part(path, member, reason)
        if not reason and (not part or basename(name).startswith(".")):
            continue
        if not reason and member.size > MAX_BYTES[part]:
            reason = f"has {member.size} bytes, more than the {MAX_BYTES[part]} that are read"
        if reason:
            unreadable.append((f"{shard}/{name}", reason))
        members = images if part in ("image", "") else sidecars.setdefault(splitext(name)[0], {})
        # of two members of one name the later one counts, as when an archive is unpacked
        members[name if members is images else part] = None if reason else Extent(name, member.offset_data, member.size)
    samples, keys = [], {splitext(name)[0] for name in images}
    for name, extent in images.items():
        key = splitext(name)[0]
        if extent is not None and not (_owner(key) in keys and _owner(key) in sidecars and key not in sidecars):
            parts = {part: other for part, other in sidecars.get(key, {}).items() if other is not None}
            samples.append(parts | {"image": extent})
    lone = [key for key in sidecars if "txt" in sidecars[key] and not {key, _owner(key)} & keys]
    return samples, unreadable + [(f"{shard}/{key}.txt", "has no image beside it") for key in lone]


def _part(path: str, member: tarfile.TarInfo, reason: str) -> str:
    """Which of PARTS a member is, by its extension or, if it has none, by its content; else ""."""
    extension = splitext(member.name)[1].lower()
    if extension in EXTENSIONS or not extension and not reason and _is_image(path, member):
        return "image"
    return extension[1:] if extension[1:] in PARTS[1:] else ""


def _owner(key: str) -> str:
    """key.seg -> key: by the rule of WebDataset, key.seg.png beside key.jpg and key.txt is not an image to train on."""
    folder, slash, name = key.rpartition("/")
    return folder + slash + name.partition(".")[0]


def _members(path: str, length: int) -> Iterator[tuple[tarfile.TarInfo | None, str]]:
    """The files and links of an archive, each with the reason why it cannot be used, or ""; last, errors of the tar."""
    last = -1
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # tarfile would keep all of them in memory
                if tar.offset <= last:
                    raise tarfile.ReadError("its headers form a loop")
                last = tar.offset
                if not member.isdir():
                    yield member, _refusal(member, length)
            if last < length:
                tar.fileobj.seek(last)
                if any(tar.fileobj.read(tarfile.BLOCKSIZE)):
                    raise tarfile.ReadError("the next header is missing")
    except Exception as error:  # damaged headers raise anything, from ReadError to RecursionError
        message = getattr(error, "strerror", None) or str(error) or type(error).__name__
        where = f"from byte {last} on" if last > 0 else "and cannot be read"
        yield None, " ".join(f"is a damaged or compressed tar archive {where}: {message}".split())[:300]


def _refusal(member: tarfile.TarInfo, length: int) -> str:
    if not member.isreg() or member.issparse():
        return "is a link, a device or a sparse file; an image must be a plain file"
    if member.name.startswith("/") or ".." in member.name.replace("\\", "/").split("/"):
        return "has a name that points outside of the archive"
    if member.size < 0 or member.offset_data + member.size > length:
        return f"is truncated: the archive ends before its {member.size} bytes"
    return ""


def _is_image(path: str, member: tarfile.TarInfo) -> bool:
    """Whether the content of a member is an image."""
    if member.size > MAX_BYTES["image"]:
        return False
    with open(path, "rb") as file:
        file.seek(member.offset_data)
        try:
            check_header(BytesIO(file.read(member.size)))
        except BadImage:
            return False
    return True
