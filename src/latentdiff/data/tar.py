"""Pictures in tar shards, as img2dataset and WebDataset write them, read with random access through a small index."""

import hashlib
import json
from bisect import bisect_right
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from latentdiff.config import UserError
from latentdiff.data import tar_index
from latentdiff.data.folder import RESERVED, check_preprocessing, choose, lines
from latentdiff.data.image import BadImage, resize_and_crop, open_image, refuse_too_many
from latentdiff.data.listing import label_number, texts
from latentdiff.data.tar_shards import of_split, open_shards

MOST_CAPTIONS = 500_000  # that a tokenizer learns from


@dataclass(frozen=True)
class TarConfig:
    path: str = "data"  # a .tar, or a folder of them; the word train, val or test in a name (or folder) is its split
    size: int = 256  # height and width in pixels that pictures are resized to cover and cropped to
    width: int = 0  # width, where it is not as the height (0: as size)
    crop: str = "center"  # center | random: which part of a picture that has another shape
    flip: bool = False  # mirror half of the views; makes captions that say left or right untrue
    caption: str = "text"  # field of key.json with the caption or a list of them; where it has none, key.txt is read
    val_fraction: float = 0.02  # held out for validation by a hash of the name, where no shard is for val
    max_bad_fraction: float = 0.05  # stop when more than this share of the pictures cannot be read
    index: str = ""  # folder for the index; empty: .latentdiff beside the shards, or ~/.cache/latentdiff

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.width or self.size

    def open(self, split: str):
        return TarDataset(self, split)


class Sample(NamedTuple):
    """One picture and what belongs to it."""

    id: str
    path: str
    row: np.ndarray

    def read(self, part: str) -> bytes:
        try:
            return tar_index.read_part(self.path, self.row, part)
        except OSError as error:
            raise BadImage(f"its shard cannot be read: {error.strerror}") from None


class TarDataset:
    """One split of the shards. Memory grows with the shards (about 1 KB each), not with the pictures.

    .label_names  "0", "1" ...: what key.cls counts     .bad  [(id, reason)] found without opening a picture
    .orphans      none     .has_captions
    """

    def __init__(self, config: TarConfig, split: str):
        check_preprocessing(config)
        assert split in ("train", "val", "test"), f"there is no split {split!r}"
        self.config, self.orphans = config, []
        self.height, self.width = config.size, config.width or config.size
        spans, facts = open_shards(config.path, config.index)
        self.bad = [tuple(entry) for about in facts for entry in about["bad"]]
        total = sum(len(span.rows) for span in spans)
        refuse_too_many(self.bad, total + len(self.bad), config.max_bad_fraction)
        self.spans = of_split(spans, split, config.val_fraction)
        self.ends = list(accumulate(len(span.rows) for span in self.spans))
        if not self.ends and split != "val":
            names = ", ".join(span.shard for span in spans[:8])
            raise UserError(f"data.path={config.path!r} holds no pictures to {split} on; its shards are {names}")
        self.label_names = [str(i) for i in range(max(about["labels"] for about in facts))]
        some = range(min(50, len(self)))  # in a random order
        self.has_captions = any(about["texts"] for about in facts) or any(map(self._says, some))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def id(self, i: int) -> str:
        return self._sample(i).id

    def content(self, i: int) -> bytes:
        """The bytes of picture i; BadImage if there are none."""
        return self._sample(i).read("image")

    def record(self, i: int, key: int) -> dict:
        """What key.json says, id, label (int) and caption, where there are any; `key` alone chooses among captions."""
        return self._record(self._sample(i), key)

    def item(self, i: int, key: int) -> dict:
        """The record, image uint8 [H, W, 3] and view (which part it shows); `key` alone decides crop and flip."""
        sample = self._sample(i)
        image = open_image(BytesIO(sample.read("image")))
        image, view = resize_and_crop(image, self.height, self.width, self.config.crop, key, self.config.flip)
        return self._record(sample, key) | {"image": image, "view": view}

    def texts(self, i: int) -> list[str]:
        """The captions of picture i."""
        sample = self._sample(i)
        return self._texts(sample, _columns(sample))

    def silence(self, i: int) -> str:
        """Why picture i has no caption."""
        return "empty" if self._sample(i).row[2] else "missing"

    def captions(self) -> list[str]:
        """Every caption of the split, or of as many pictures as suffice; UserError when there is none."""
        if not self.has_captions:
            fields = ", ".join(sorted(_columns(self._sample(0)))[:20]) or "none"
            raise UserError(
                f"data.path={self.config.path!r} has no captions: no key.txt beside key.jpg, and key.json has no field "
                f"{self.config.caption!r} (data.caption); its fields are {fields}"
            )
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(self._says, range(0, len(self), -(-len(self) // MOST_CAPTIONS)))
            return [text for texts in found for text in texts]

    def fingerprint(self) -> str:
        """Hex hash of what the pixels depend on: names and sizes of the pictures, and the preprocessing."""
        digest = hashlib.blake2b(repr((self.height, self.width, self.config.crop, self.config.flip)).encode())
        for span in self.spans:
            digest.update(repr((span.shard, span.pixels, span.rows)).encode())
        return digest.hexdigest()[:32]

    def _sample(self, i: int) -> Sample:
        place = bisect_right(self.ends, i)
        span = self.spans[place]
        try:
            row, name = tar_index.read_row(span.index, span.rows.stop - self.ends[place] + i)
        except Exception as error:  # its library raises one of its own
            raise UserError(f"{span.index} was changed or removed while it was used ({error}); start again") from None
        return Sample(f"{span.shard}/{name}", span.path, row)

    def _record(self, sample: Sample, key: int) -> dict:
        columns = _columns(sample)
        record = {name: value for name, value in columns.items() if name not in RESERVED} | {"id": sample.id}
        record.pop("map_file_name", None)  # a file on the disk is no part of a shard
        labels = (int(sample.row[10]), *map(label_number, (columns.get("label_id"), columns.get("label"))))
        label = next((label for label in labels if label not in (None, -1)), None)
        if label is not None:
            record["label"] = label
        if self.has_captions:
            record["caption"] = choose(self._texts(sample, columns), key)
        return record

    def _texts(self, sample: Sample, columns: dict) -> list[str]:
        said = [columns.get(column.strip()) for column in self.config.caption.split(",")]
        return [text for value in said for text in texts(value)] or lines(sample.read("txt"))

    def _says(self, i: int) -> list[str]:
        try:
            return self.texts(i)
        except BadImage:
            return []


def _columns(sample: Sample) -> dict:
    """What key.json says; BadImage when it says nothing that can be read."""
    try:
        columns = json.loads(sample.read("json") or b"{}")
    except (ValueError, RecursionError) as error:
        raise BadImage(f"its json cannot be read: {error}"[:200]) from None
    if not isinstance(columns, dict):
        raise BadImage('its json is no object such as {"text": ...}')
    return columns
