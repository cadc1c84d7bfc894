"""Any picture file that Pillow opens -> an RGB crop of the wanted size, or one line that says why not."""

import json
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from latentdiff import rng
from latentdiff.config import UserError

warnings.filterwarnings("ignore", module=r"PIL\.")  # for good: catch_warnings is not safe among threads

Image.init()
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}  # Pillow knows their names, but decodes none by itself
FORMATS = tuple(sorted(set(Image.OPEN) - NOT_PICTURES))
# lower case; a file of several JPEGs is opened as the first of them
EXTENSIONS = frozenset(ext for ext, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))

TURN = {  # EXIF orientation -> what undoes it; ImageOps.exif_transpose stumbles over EXIF that it cannot write back
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
CROPS = ("center", "random")


class BadImage(Exception):
    """A picture that cannot be used; its text is the reason, in one line."""


class CropParams(NamedTuple):
    """Which part of a picture was taken: x' = x·scale - left, y' = y·scale - top, then mirrored if `flip`."""

    scale: float  # resized pixels per pixel of the file (after its EXIF turn)
    top: int  # in resized pixels
    left: int
    height: int  # of the crop
    width: int
    flip: bool

    def cut(self, image: Image.Image, resample: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
        """The crop [height, width] out of the picture or a map of its size (NEAREST for class maps). Antialiased."""
        edges = (self.left, self.top, self.left + self.width, self.top + self.height)
        box = [min(edge / self.scale, size) for edge, size in zip(edges, image.size * 2)]  # rounding may step outside
        # the box alone is resized, so that a picture of 1 x 100,000 pixels never becomes 256 x 25,600,000
        gap = None if resample == Image.Resampling.NEAREST else 3.0
        image = image.resize((self.width, self.height), resample, box=box, reducing_gap=gap)
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flip else image


def choose_crop(size: tuple[int, int], height: int, width: int, crop: str, key: int, flip: bool) -> CropParams:
    """A view of a picture of `size` (width, height): `key` alone places a random crop, and its lowest bit flips."""
    scale = max(height / size[1], width / size[0])
    slack = (max(0, int(size[1] * scale) - height), max(0, int(size[0] * scale) - width))
    places = {"center": lambda n, name: n // 2, "random": lambda n, name: rng.key(key, name) % (n + 1)}
    top, left = (places[crop](n, name) for n, name in zip(slack, ("top", "left")))
    return CropParams(scale, top, left, height, width, flip and key & 1 == 1)


def resize_and_crop(image: Image.Image, height: int, width: int, crop: str, key: int, flip: bool) -> tuple[np.ndarray, CropParams]:
    """RGB picture -> uint8 [height, width, 3] and the view it shows, so that boxes and maps can follow."""
    view = choose_crop(image.size, height, width, crop, key, flip)
    return np.array(view.cut(image)), view


def open_image(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Opens any picture as RGB: EXIF turn, transparency on white, first frame. Whatever goes wrong is a BadImage."""
    try:
        with Image.open(source, formats=FORMATS) as image:
            image.load()  # before its EXIF is asked for: PNG may carry that at the end
            return to_rgb(_turn(image))
    except Exception as error:  # damaged files raise anything, from SyntaxError to struct.error
        raise BadImage(reason(error)) from None


def check_header(source: str | os.PathLike | BinaryIO) -> None:
    """BadImage if the file is not even the beginning of a picture; decodes nothing."""
    try:
        Image.open(source, formats=FORMATS).close()
    except Exception as error:
        raise BadImage(reason(error)) from None


class BadImageList:
    """The pictures of a run that could not be read: a JSON-lines file, made when the first one is met.

    Each rank writes a file of its own (bad_images.jsonl, bad_images.rank1.jsonl ...), so that no line is ever
    garbled, and reads what the others add to theirs, so that all of them together are judged.
    """

    def __init__(self, path: str | os.PathLike, total: int, max_bad: float):
        path, rank = Path(path), os.environ.get("RANK", "0")
        self.path = path if rank == "0" else path.with_name(f"{path.stem}.rank{rank}{path.suffix}")
        self.others = f"{path.stem}*{path.suffix}"
        self.total, self.max_bad = total, max_bad
        self.bad: dict[str, str] = {}  # met since the start: an older entry of the file may have been mended since
        self.listed = self._read()
        self.read = {other: other.stat().st_size for other in path.parent.glob(self.others)}  # bytes of their files

    def add(self, id: str, reason: str) -> None:
        """Counts and lists a picture once; UserError when more than `max_bad` of `total` are bad."""
        self.enter([(id, reason)])
        self._look_at_others()
        self.bad[id] = reason
        refuse_too_many(list(self.bad.items()), self.total, self.max_bad, f"; all of them: {self.path}")

    def enter(self, entries: Iterable[tuple[str, str]]) -> None:
        """Into the file alone, each once: what was counted, and judged, elsewhere."""
        for id, reason in entries:
            if id not in self.listed:
                self.listed.add(id)
                with open(self.path, "a") as file:
                    file.write(json.dumps({"id": id, "reason": reason}) + "\n")

    def note(self, entries: Iterable[tuple[str, str]]) -> None:
        """The "bad" of a batch."""
        for entry in entries:
            self.add(*entry)

    def _read(self) -> set[str]:
        text = self.path.read_text() if self.path.exists() else ""
        if not text.endswith("\n") and text:  # the run was killed in mid-line
            text = text[: text.rfind("\n") + 1]
            self.path.write_text(text)
        return {entry["id"] for entry in map(_entry, text.splitlines()) if entry}

    def _look_at_others(self) -> None:
        for other in self.path.parent.glob(self.others):
            if other != self.path:
                with open(other, "rb") as file:
                    file.seek(self.read.get(other, 0))
                    whole, newline, _ = file.read().rpartition(b"\n")
                self.read[other] = self.read.get(other, 0) + len(whole + newline)
                self.bad |= {entry["id"]: entry["reason"] for entry in map(_entry, whole.splitlines()) if entry}


def _entry(line: str | bytes) -> dict | None:
    """A line of the list; none for one that is damaged."""
    try:
        entry = json.loads(line)
        return entry if isinstance(entry, dict) and isinstance(entry.get("id"), str) and "reason" in entry else None
    except ValueError:
        return None


def refuse_too_many(bad: list[tuple[str, str]], total: int, max_bad: float, where: str = "") -> None:
    """UserError with the head of the list when its share of `total` is above `max_bad`."""
    if len(bad) <= max_bad * total:
        return
    head = "".join(f"\n  {id}: {reason}" for id, reason in bad[:10])
    more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
    count = f"{len(bad)} of {total} pictures cannot be used, more than data.max_bad_fraction = {max_bad}"
    raise UserError(f"{count}: mend or remove them, or raise it{where}{head}{more}")


def _turn(image: Image.Image) -> Image.Image:
    try:
        turn = TURN.get(image.getexif().get(0x0112))
    except Exception:  # broken EXIF around a sound picture
        return image
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode -> RGB; what is transparent becomes white."""
    if image.mode.startswith("I") or image.mode == "F":
        return _from_deep(image)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image).convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and float gray -> RGB; Pillow's own conversion cuts at 255 where this one scales."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    peak = float(values.max())
    depth = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # TIFF's BitsPerSample: cameras store 12 bits in 16
    if image.mode.startswith("I;16"):
        white = 2.0**depth - 1
    else:  # no range is declared: the least usual one that holds the values
        white = next((top for top in (1.0, 255.0, 65535.0) if peak <= top), peak)
    levels = np.clip(values * (255 / white) + 0.5, 0, 255).astype(np.uint8)
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        levels[values == clear] = 255  # transparent gray on white
    return Image.fromarray(levels).convert("RGB")


def reason(error: Exception) -> str:
    """What went wrong, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "is no picture, or of a kind that Pillow cannot open"
    text = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:200]
