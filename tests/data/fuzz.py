"""Fuzzer of metadata lines, tar headers and annotations: each is read, listed as bad, or refused with a UserError.

python tests/data/fuzz.py COUNT [SEED]      COUNT of each kind, in a temporary folder; any traceback is a bug
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
from latentdiff.data.dataset import ImageDataConfig
from latentdiff.data.folder import FolderConfig
from latentdiff.data.image import BadImage
from latentdiff.data.loader import collate
from latentdiff.data.tar import TarConfig
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece

TOKENIZER = CaptionTokenizer(wordpiece([*SPECIALS, "one"]), 8)
DEEPLY_NESTED = "[" * 3000
JUNK = [
    None, True, False, 0, -1, 3, 1.5, float("nan"), float("inf"), 10**30, -(2**63), "", " ", "\0", "0.png", "../0.png",
    "/etc/passwd", "..\\1.png", "\ud800", "\udcff", "x" * 3000, "1", "\u0663", "\xb2", [], [[]], [1, 2, 3, 4], {},
    ["a", None, 5], {"bbox": [[1]]}, {"file_name": 3}, [{}], "NaN", "true", "\n", "\ufeff", "%s{}", "file_name",
]  # fmt: skip
FRAGMENTS = [
    b"{", b"}", b"[", b'"', b",", b":", b"\\", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf", b"1e999", b"NaN", b"-",
    b"9" * 5000, b"\\ud800", b"null", b'"file_name"', b"../", DEEPLY_NESTED.encode(), b"\xe2\x80\xa8",
]  # fmt: skip
ENTRIES = [
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


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Copy of the value with one key or value, at any depth, replaced by junk."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.8:
        copy = value.copy()
        key = rng.choice(list(copy) if isinstance(copy, dict) else range(len(copy)))
        if isinstance(copy, dict) and rng.random() < 0.2:
            copy[str(rng.choice(JUNK))] = copy.pop(key)
        else:
            copy[key] = mutate_value(copy[key], rng)
        return copy
    return rng.choice(JUNK)


def mutate_bytes(content: bytes, rng: random.Random, times: int) -> bytes:
    """Replace, delete, duplicate or insert a few bytes, `times` times."""
    content = bytearray(content)
    for _ in range(times):
        start, length = rng.randrange(len(content) + 1), rng.randrange(1, 9)
        old = content[start : start + length]
        content[start : start + length] = [rng.randbytes(length), b"", old * 2, rng.choice(FRAGMENTS)][rng.randrange(4)]
    return bytes(content[: rng.randrange(len(content) + 1)]) if rng.random() < 0.05 else bytes(content)


def mutated_json(value: Any, rng: random.Random) -> bytes:
    """The value as JSON, after mutation of the value, of the bytes, or of both."""
    value = mutate_value(value, rng) if rng.random() < 0.8 else value
    content = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    return mutate_bytes(content, rng, rng.randrange(1, 4)) if rng.random() < 0.5 else content


def read_all(data: Any, rng: random.Random) -> None:
    """Read all records, items and captions of a dataset, as training does."""
    items = []
    for i in range(len(data)):
        for read in (data.record, data.item):
            try:
                items.append(read(i, rng.getrandbits(60)) | {"bad": []})
            except BadImage as error:
                assert "\n" not in str(error) and len(str(error)) < 2000
    if items:
        collate(items)
    if data.has_captions:
        TOKENIZER.encode(data.captions())
    data.fingerprint()


def is_refused(config: ImageDataConfig, rng: random.Random) -> bool:
    """Whether reading the dataset raises a UserError; any other error is raised."""
    try:
        data = config.open("train")
        read_all(data, rng)
    except UserError:
        return True
    assert all(isinstance(id, str) and isinstance(reason, str) for id, reason in data.unreadable)
    json.dumps(data.unreadable)
    return False


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png())


def fuzz_metadata(folder: Path, count: int, seed: int) -> int:
    """Read `count` lines in tables of 1 to 40; return the number of refused tables."""
    rng, refused = random.Random(seed), 0
    write_images(folder)
    config = FolderConfig(str(folder), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    while count > 0:
        length = min(count, rng.randint(1, 40))
        lines = [mutated_json(rng.choice(ENTRIES), rng).replace(b"\n", b" ") for _ in range(length)]
        count -= length
        name, other = rng.sample(["metadata.jsonl", "metadata.csv"], 2)
        header = b"file_name,text,label,map_file_name\n" if name.endswith("csv") else b""
        (folder / other).unlink(missing_ok=True)
        (folder / name).write_bytes(header + b"\n".join([*lines, json.dumps(ENTRIES[0]).encode()]))
        refused += is_refused(config, rng)
    return refused


def fuzz_annotations(folder: Path, count: int, seed: int) -> int:
    """Read `count` annotation files; return the number of refused files."""
    rng, refused = random.Random(seed), 0
    write_images(folder)
    config = CocoConfig(str(folder), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    for _ in range(count):
        (folder / "instances_train.json").write_bytes(mutated_json(COCO, rng))
        refused += is_refused(config, rng)
    return refused


def valid_archives() -> Iterator[bytes]:
    """Valid tars of each format, with long names."""
    members = {"a.png": png(), "a.txt": b"one", "a.json": json.dumps(ENTRIES[0]).encode(), "a.cls": b"3"}
    members |= {"l" * 90 + "/" + "m" * 90 + ".png": png(), "noextension": png(), "ünï.png": png()}
    for tar_format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
            for name, content in members.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                member.pax_headers = {"comment": "x"} if tar_format == tarfile.PAX_FORMAT else {}
                tar.addfile(member, io.BytesIO(content))
        yield file.getvalue()


def fuzz_headers(folder: Path, count: int, seed: int) -> int:
    """Read archives, each with 1 to 3 of `count` mutated headers; return the number of refused archives."""
    rng, refused, valid = random.Random(seed), 0, list(valid_archives())
    folder.mkdir(parents=True, exist_ok=True)
    config = TarConfig(str(folder / "x.tar"), size=8, val_fraction=0.0, max_bad_fraction=1.0)
    while count > 0:
        content = bytearray(rng.choice(valid))
        starts = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"]
        for start in rng.sample(starts, rng.randint(1, 3)):
            count -= 1
            content[start : start + 512] = _mutate_header(bytes(content[start : start + 512]), rng)
        if rng.random() < 0.2:
            content = content[: rng.randrange(len(content))]
        (folder / "x.tar").write_bytes(content)
        refused += is_refused(config, rng)
    return refused


HEADER_FIELDS = [  # (start, length) of name, size, type, magic, prefix, sparse map, all; repeated: more likely
    (0, 100), (124, 12), (124, 12), (124, 12), (156, 1), (156, 1), (257, 8), (345, 155), (386, 24), (0, 512),
]  # fmt: skip


def _mutate_header(header: bytes, rng: random.Random) -> bytes:
    """Change one field, mostly with a valid checksum: without one, the reader stops at the header."""
    start, length = rng.choice(HEADER_FIELDS)
    options = [
        rng.randbytes(length),
        bytes([rng.choice(b"0123456789LKxgSVDMNAX\0\xff")]) * length,
        b"\x80" + rng.randbytes(length - 1),
    ]
    options += [
        mutate_bytes(header[start : start + length], rng, 2),
        b"%0*o" % (length - 1, rng.getrandbits(3 * min(length - 1, 11))),
        b"../" * 50,
    ]
    value = rng.choice(options)[:length].ljust(length, b"\0")
    header = bytearray(header[:start] + value + header[start + length :])
    if rng.random() < 0.8:
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header)


def main(count: int, seed: int) -> None:
    for fuzz_files in (fuzz_metadata, fuzz_headers, fuzz_annotations):
        with tempfile.TemporaryDirectory() as folder:
            start = time.monotonic()
            refused = fuzz_files(Path(folder) / "data", count, seed)
            seconds = time.monotonic() - start
            print(f"{fuzz_files.__name__}: {count:,} inputs, {refused:,} files refused, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
