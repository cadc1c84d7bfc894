"""Images in tar shards, as img2dataset and WebDataset write them, with random access through a small index."""

import json
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from latentdiff.config import UserError
from latentdiff.data import tar_index
from latentdiff.data.dataset import Dataset, ImageDataConfig, Metadata
from latentdiff.data.folder import caption_lines
from latentdiff.data.image import BadImage, refuse_too_many
from latentdiff.data.listing import caption_list, label_number
from latentdiff.data.tar_shards import open_shards, spans_of_split


@dataclass(frozen=True)
class TarConfig(ImageDataConfig):
    path: str = "data"  # a .tar, or a folder of them; the word train, val or test in a name (or folder) is its split
    caption: str = "text"  # field of key.json with the caption or a list of captions; without it, key.txt is read
    index: str = ""  # folder for the index; empty: .latentdiff beside the shards, or ~/.cache/latentdiff

    def open(self, split: str) -> "TarDataset":
        return TarDataset(self, split)


class Sample(NamedTuple):
    """One image and the files of the same key."""

    id: str
    path: str  # of the shard
    entry: np.ndarray  # of the index

    def read(self, part: str) -> bytes:
        try:
            return tar_index.read_part(self.path, self.entry, part)
        except OSError as error:
            raise BadImage(f"its shard cannot be read: {error.strerror}") from None

    def columns(self) -> dict:
        """The content of key.json; raises BadImage if it is not a JSON object."""
        try:
            columns = json.loads(self.read("json") or b"{}")
        except (ValueError, RecursionError) as error:
            raise BadImage(f"its json cannot be read: {error}"[:200]) from None
        if not isinstance(columns, dict):
            raise BadImage('its json is not an object such as {"text": ...}')
        return columns


class TarDataset(Dataset):
    """One split of the shards. Memory grows with the number of shards (about 1 KB each), not of images."""

    max_captioned = 500_000

    def __init__(self, config: TarConfig, split: str) -> None:
        super().__init__(config, split)
        spans, facts = open_shards(config.path, config.index)
        self.unreadable = [tuple(entry) for shard in facts for entry in shard["unreadable"]]
        total = sum(len(span.entries) for span in spans)
        refuse_too_many(self.unreadable, total + len(self.unreadable), config.max_bad_fraction)
        self.spans = spans_of_split(spans, split, config.val_fraction)
        self.ends = list(accumulate(len(span.entries) for span in self.spans))
        if not self.ends and split != "val":
            names = ", ".join(span.shard for span in spans[:8])
            raise UserError(f"data.path={config.path!r} holds no images to {split} on; its shards are {names}")
        self.label_names = [str(i) for i in range(max(shard["labels"] for shard in facts))]  # numbers in key.cls
        first = range(min(50, len(self)))  # in random order
        self.has_captions = any(shard["texts"] for shard in facts) or any(map(self._captions_if_readable, first))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def id(self, i: int) -> str:
        return self._sample(i).id

    def content(self, i: int) -> bytes:
        return self._sample(i).read("image")

    def metadata(self, i: int) -> Metadata:
        sample = self._sample(i)
        columns = sample.columns()
        values = [columns.get(column.strip()) for column in self.config.caption.split(",")]
        captions = [text for value in values for text in caption_list(value)] or caption_lines(sample.read("txt"))
        labels = (int(sample.entry[10]), *map(label_number, (columns.get("label_id"), columns.get("label"))))
        columns.pop("map_file_name", None)  # it would name a file outside of the shard
        return Metadata(captions, next((label for label in labels if label not in (None, -1)), None), columns)

    def missing_caption_reason(self, i: int) -> str:
        return "empty" if self._sample(i).entry[2] else "missing"

    def no_captions_reason(self) -> str:
        fields = ", ".join(sorted(self._sample(0).columns())[:20]) if len(self) else ""
        field = f"field {self.config.caption!r} (data.caption); its fields are {fields or 'none'}"
        return f"no key.txt beside key.jpg, and key.json has no {field}"

    def fingerprint(self) -> str:
        """A hash of names and sizes of the images, and of the preprocessing."""
        return self.hash_pixels((span.shard, span.pixels, span.entries) for span in self.spans)

    def _sample(self, i: int) -> Sample:
        span_number = bisect_right(self.ends, i)
        span = self.spans[span_number]
        try:
            entry, name = tar_index.read_entry(span.index, span.entries.stop - self.ends[span_number] + i)
        except Exception as error:  # of a library
            raise UserError(f"{span.index} was changed or removed while it was used ({error}); start again") from None
        return Sample(f"{span.shard}/{name}", span.path, entry)
