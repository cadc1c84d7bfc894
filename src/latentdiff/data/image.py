"""Any image file that Pillow opens -> an RGB crop of the requested size, or the reason why not in one line."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from latentdiff import rng
from latentdiff.config import UserError

warnings.filterwarnings("ignore", module=r"PIL\.")  # globally: catch_warnings is not thread-safe

Image.init()
NO_DECODER = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # formats that Pillow registers but cannot decode itself
FORMATS = tuple(sorted(set(Image.OPEN) - NO_DECODER))
# lower case; of a file with several JPEGs (MPO) the first is opened
EXTENSIONS = frozenset(ext for ext, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))

UNDO_ORIENTATION = {  # EXIF orientation -> transpose; ImageOps.exif_transpose fails on EXIF that it cannot write
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
CROPS = ("center", "random")


class BadImage(Exception):
    """An image that cannot be used; the message is the reason, in one line."""


class CropParams(NamedTuple):
    """The crop of an image: x' = x·scale - left, y' = y·scale - top, then flipped horizontally if `flip`."""

    scale: float  # resized pixels per pixel of the file (after its EXIF orientation)
    top: int  # in resized pixels
    left: int
    height: int  # of the crop
    width: int
    flip: bool

    def apply(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """The crop [height, width] of the image, antialiased, or of a map of its size (NEAREST for class maps)."""
        edges = (self.left, self.top, self.left + self.width, self.top + self.height)
        box = [min(edge / self.scale, size) for edge, size in zip(edges, image.size * 2)]  # rounding may exceed it
        # only the box is resized, so that an image of 1 x 100,000 pixels never becomes 256 x 25,600,000
        reducing_gap = None if resample == Image.Resampling.NEAREST else 3.0
        image = image.resize((self.width, self.height), resample, box=box, reducing_gap=reducing_gap)
        return image.transpose(Transpose.FLIP_LEFT_RIGHT) if self.flip else image


def choose_crop(size: tuple[int, int], height: int, width: int, crop: str, key: int, flip: bool) -> CropParams:
    """The crop of an image of `size` (width, height): `key` alone positions a random crop; its lowest bit flips."""
    scale = max(height / size[1], width / size[0])
    slack = (max(0, int(size[1] * scale) - height), max(0, int(size[0] * scale) - width))
    top, left = (
        n // 2 if crop == "center" else rng.key(key, name) % (n + 1) for n, name in zip(slack, ("top", "left"))
    )
    return CropParams(scale, top, left, height, width, flip and key & 1 == 1)


def resize_and_crop(
    image: Image.Image, height: int, width: int, crop: str, key: int, flip: bool
) -> tuple[np.ndarray, CropParams]:
    """RGB image -> uint8 [height, width, 3] and its crop, which boxes and maps follow."""
    view = choose_crop(image.size, height, width, crop, key, flip)
    return np.array(view.apply(image)), view


def open_image(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Open an image as RGB: EXIF orientation applied, transparency on white, first frame. Any error is a BadImage."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()  # before reading EXIF, which a PNG may have at its end
            return to_rgb(_apply_orientation(image))
    except Exception as error:  # damaged files raise anything, from SyntaxError to struct.error
        raise BadImage(reason(error)) from None


def check_header(source: str | os.PathLike | BinaryIO) -> None:
    """Raise BadImage if the header is not that of an image; nothing is decoded."""
    try:
        Image.open(source, formats=FORMATS).close()
    except Exception as error:
        raise BadImage(reason(error)) from None


class BadImageList:
    """The unreadable images of a run: a JSON-lines file, created with the first one.

    Each rank writes its own file (bad_images.jsonl, bad_images.rank1.jsonl ...), so that lines never mix, and reads the
    files of the others, so that `max_fraction` applies to all ranks together.
    """

    def __init__(self, path: str | os.PathLike, total: int, max_fraction: float) -> None:
        path, rank = Path(path), os.environ.get("RANK", "0")
        self.path = path if rank == "0" else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
        self.others = f"{path.stem}*{path.suffix}"
        self.total, self.max_fraction = total, max_fraction
        self.bad: dict[str, str] = {}  # since this start; older entries may be fixed by now
        self.listed: set[str] = set()
        if self.path.exists():
            entries, end = _read_list(self.path)
            self.listed = set(entries)
            os.truncate(self.path, end)  # the run may have been killed within a line
        self.bytes_read = {other: other.stat().st_size for other in path.parent.glob(self.others)}

    def add(self, entries: Iterable[tuple[str, str]]) -> None:
        """Count and list images (id, reason), each once; UserError when more than `max_fraction` of `total` are bad."""
        for id, reason in entries:
            self.write([(id, reason)])
            self._read_others()
            self.bad[id] = reason
            refuse_too_many(list(self.bad.items()), self.total, self.max_fraction, f"; all of them: {self.path}")

    def write(self, entries: Iterable[tuple[str, str]]) -> None:
        """Write entries to the file, each once, without counting them."""
        for id, reason in entries:
            if id not in self.listed:
                self.listed.add(id)
                with open(self.path, "a") as file:
                    file.write(json.dumps({"id": id, "reason": reason}) + "\n")

    def _read_others(self) -> None:
        for other in self.path.parent.glob(self.others):
            if other != self.path:
                entries, self.bytes_read[other] = _read_list(other, self.bytes_read.get(other, 0))
                self.bad |= entries


def _read_list(path: Path, start: int = 0) -> tuple[dict[str, str], int]:
    """{id: reason} of the complete lines from byte `start` on, and the byte at which they end."""
    with open(path, "rb") as file:
        file.seek(start)
        lines, newline, _ = file.read().rpartition(b"\n")
    entries = {}
    for line in lines.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged line
            entry = json.loads(line)
            entries[entry["id"]] = entry["reason"]
    return entries, start + len(lines + newline)


def refuse_too_many(bad: list[tuple[str, str]], total: int, max_fraction: float, where: str = "") -> None:
    """UserError with the first entries if they are more than `max_fraction` of `total`."""
    if len(bad) <= max_fraction * total:
        return
    head = "".join(f"\n  {id}: {reason}" for id, reason in bad[:10])
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    count = f"{len(bad)} of {total} images cannot be used, more than data.max_bad_fraction = {max_fraction}"
    raise UserError(f"{count}: fix or remove them, or raise it{where}{head}{more}")


def _apply_orientation(image: Image.Image) -> Image.Image:
    try:
        transpose = UNDO_ORIENTATION.get(image.getexif().get(0x0112))
    except Exception:  # the EXIF is damaged, the image is not
        return image
    return image if transpose is None else image.transpose(transpose)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB; transparent pixels become white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float gray -> RGB by scaling, where Pillow clips at 255."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = float(values.max())
    depth = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample: cameras store 12 bits in 16
    if image.mode.startswith("I;16"):
        white = 2.0**depth - 1
    else:  # without a declared range: the smallest common one that contains the values
        white = next((top for top in (1.0, 255.0, 65535.0) if peak <= top), peak)
    levels = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        levels[values == transparent] = 255  # transparent gray becomes white
    return Image.fromarray(levels).convert("RGB")


def reason(error: Exception) -> str:
    """The error in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "is not an image, or of a format that Pillow cannot open"
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]
