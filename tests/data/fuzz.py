"""Damaged metadata lines, tar headers and annotations: each must be read, counted as bad, or refused in words.

python tests/data/fuzz.py COUNT [SEED]      COUNT of each kind, in a folder of their own; any traceback is a bug
"""

import io
import json
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from latentdiff.config import UserError
from latentdiff.data.coco import CocoConfig
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.image import BadImage
from latentdiff.data.loader import collate
from latentdiff.data.tar import TarConfig, TarDataset
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece

TOKENIZER = CaptionTokenizer(wordpiece([*SPECIALS, "one"]), 8)
DEEP = "[" * 3000
JUNK = [
    None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), 10**30, -(2**63), "", " ", "\0", "0.png", "../0.png",
    "/etc/passwd", "..\\1.png", "\ud800", "\udcff", "x" * 3000, "1", "\u0663", "\xb2", [], [[]], [1, 2, 3, 4], {},
    ["a", None, 5], {"bbox": [[1]]}, {"file_name": 3}, [{}], "NaN", "true", "\n", "\ufeff", "%s{}", "file_name",
]  # fmt: skip
TOKENS = [
    b"{", b"}", b"[", b'"', b",", b":", b"\\", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"1e999", b"NaN", b"-",
    b"9" * 5000, b"\\ud800", b"null", b'"file_name"', b"../", DEEP.encode(), b"\xe2\x80\xa8",
]  # fmt: skip
ROWS = [
    {"file_name": f"{i}.png", "text": "one", "label": "cat", "label_id": 0, "score": 0.5, "map_file_name": "0.png",
     "objects": {"bbox": [[0, 0, 2, 2]], "categories": [0]}}
    for i in range(8)
]  # fmt: skip
COCO = {
    "images": [{"id": 1, "file_name": "0.png", "width": 8, "height": 8}, {"id": 2, "file_name": "1.png"}],
    "annotations": [
        {"image_id": 1, "bbox": [0, 0, 2, 2], "category_id": 1, "iscrowd": 0},
        {"image_id": 2, "caption": "x"},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
}


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG")
    return file.getvalue()


def damaged(value: Any, rng: random.Random) -> Any:
    """The value with one of its parts, of any depth, replaced by junk."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = value.copy()
        place = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        if isinstance(copy, dict) and rng.random() < 0.2:
            copy[str(rng.choice(JUNK))] = copy.pop(place)
        else:
            copy[place] = damaged(copy[place], rng)
        return copy
    return rng.choice(JUNK)


def scrambled(content: bytes, rng: random.Random, times: int) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    content = bytearray(content)
    for _ in range(times):
        at, length = rng.randrange(len(content) + 1), rng.randrange(1, 9)
        part = [rng.randbytes(length), b"", content[at : at + length] * 2, rng.choice(TOKENS)][rng.randrange(4)]
        content[at : at + length] = part
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.05 else bytes(content)


def line(value: Any, rng: random.Random) -> bytes:
    """A value as damaged JSON: in its parts, its bytes or both."""
    value = damaged(value, rng) if rng.random() < 0.8 else value
    content = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return scrambled(content, rng, rng.randrange(1, 4)) if rng.random() < 0.5 else content


def read_all(data: Any, rng: random.Random) -> None:
    """Everything that training asks of a data set."""
    items = []
    for i in range(len(data)):
        for ask in (data.record, data.item):
            try:
                items.append(ask(i, rng.getrandbits(60)) | {"bad": []})
            except BadImage as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
    if items:
        collate(items)
    if data.has_captions:
        TOKENIZER.encode(data.captions())
    data.fingerprint()


def attempt(kind: type, config: Any, rng: random.Random) -> int:
    """1 where it was refused; anything but a UserError goes through."""
    try:
        data = kind(config, "train")
        read_all(data, rng)
    except UserError:
        return 1
    assert all(isinstance(id, str) and isinstance(reason, str) for id, reason in data.unreadable)
    json.dumps(data.unreadable)
    return 0


def images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png())


def metadata(folder: Path, count: int, seed: int) -> int:
    """`count` lines in tables of 1 to 40; -> how many tables were refused."""
    rng, refused = random.Random(seed), 0
    images(folder)
    config = FolderConfig(str(folder), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    while count > 0:
        lines = [line(rng.choice(ROWS), rng).replace(b"\n", b" ") for _ in range(min(count, rng.randint(1, 40)))]
        count -= len(lines)
        name, other = rng.sample(["metadata.jsonl", "metadata.csv"], 2)
        header = b"file_name,text,label,map_file_name\n" if name.endswith("csv") else b""
        (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(header + b"\n".join([*lines, json.dumps(ROWS[0]).encode()]))
        refused += attempt(FolderDataset, config, rng)
    return refused


def annotations(folder: Path, count: int, seed: int) -> int:
    """`count` files; -> how many were refused."""
    rng, refused = random.Random(seed), 0
    images(folder)
    config = CocoConfig(str(folder), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    for _ in range(count):
        (folder / "instances_train.json").write_bytes(line(COCO, rng))
        refused += attempt(FolderDataset, config, rng)
    return refused


def archives() -> Iterator[bytes]:
    """Sound tars of each format, with long names."""
    members = {"a.png": png(), "a.txt": b"one", "a.json": json.dumps(ROWS[0]).encode(), "a.cls": b"3"}
    members |= {"l" * 90 + "/" + "m" * 90 + ".png": png(), "noextension": png(), "ünï.png": png()}
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=form) as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.pax_headers = {"comment": "x"} if form == tarfile.PAX_FORMAT else {}
                tar.addfile(member, io.BytesIO(content))
        yield file.getvalue()


def headers(folder: Path, count: int, seed: int) -> int:
    """`count` headers in archives of up to three damaged ones; -> how many archives were refused."""
    rng, refused, sound = random.Random(seed), 0, list(archives())
    folder.mkdir(parents=True, exist_ok=True)
    config = TarConfig(str(folder / "x.tar"), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    while count > 0:
        content = bytearray(rng.choice(sound))
        starts = [at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"]
        for at in rng.sample(starts, rng.randint(1, 3)):
            count -= 1
            content[at : at + 512] = _damaged_header(bytes(content[at : at + 512]), rng)
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        (folder / "x.tar").write_bytes(content)
        refused += attempt(TarDataset, config, rng)
    return refused


FIELDS = [(0, 100), (124, 12), (124, 12), (124, 12), (156, 1), (156, 1), (257, 8), (345, 155), (386, 24), (0, 512)]


def _damaged_header(header: bytes, rng: random.Random) -> bytes:
    """One field changed; mostly with the checksum that belongs to it, as else the header is dropped at once."""
    start, length = rng.choice(FIELDS)
    options = [
        rng.randbytes(length),
        bytes([rng.choice(b"0123456789LKxgSVDMNAX\0\xff")]) * length,
        b"\x80" + rng.randbytes(length - 1),
    ]
    options += [
        scrambled(header[start : start + length], rng, 2),
        b"%0*o" % (length - 1, rng.getrandbits(3 * min(length - 1, 11))),
        b"../" * 50,
    ]
    value = rng.choice(options)[:length].ljust(length, b"\0")
    header = bytearray(header[:start] + value + header[start + length :])
    if rng.random() < 0.8:
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


def main(count: int, seed: int) -> None:
    for kind in (metadata, headers, annotations):
        with tempfile.TemporaryDirectory() as folder:
            began = time.monotonic()
            refused = kind(Path(folder) / "data", count, seed)
            print(
                f"{kind.__name__}: {count:,} tried, {refused:,} files refused, {time.monotonic() - began:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
