"""Statistics of a dataset as training reads it: every image is decoded and every caption tokenized."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from statistics import median
from typing import Any, NamedTuple

from PIL import Image

from latentdiff.data.image import FORMATS, BadImage, open_image
from latentdiff.data.tokenizer import CaptionTokenizer, train_wordpiece
from latentdiff.training.progress import track

MAX_TOKENIZED = 20_000  # captions whose tokens are counted
VOCAB_SIZE = 30_522  # of the tokenizer that counts them, as in the recipes


class ImageStats(NamedTuple):
    """One image of a dataset; only `id` and `error` are set if it cannot be read."""

    id: str
    error: str = ""
    format: str = ""  # JPEG, PNG ...
    mode: str = ""  # of the file: RGB, L ...
    size: tuple[int, int] = (0, 0)  # width, height, after the rotation of its EXIF data
    digest: bytes = b""  # of the file
    captions: tuple[str, ...] = ()
    missing_caption_reason: str = ""
    label: int | None = None


def measure_image(data: Any, i: int) -> ImageStats:
    """Decode image i in the same way as training."""
    id = data.id(i)
    try:
        content = data.content(i)
        size = open_image(BytesIO(content)).size
        with Image.open(BytesIO(content), formats=FORMATS) as header:
            format, mode = header.format, header.mode
        captions, digest = data.captions_of(i), hashlib.blake2b(content, digest_size=16).digest()
        reason = "" if captions else data.missing_caption_reason(i)
        return ImageStats(id, "", format, mode, size, digest, tuple(captions), reason, data.record(i, 0).get("label"))
    except BadImage as error:
        return ImageStats(id, str(error))


def measure_images(data: Any, count: int, split: str, threads: int) -> Iterator[ImageStats]:
    """Statistics of `count` evenly spaced images, decoded in several threads."""
    indices, step = [i * len(data) // count for i in range(count)], 32 * threads
    with ThreadPoolExecutor(threads) as pool:
        chunks = (pool.map(partial(measure_image, data), indices[i : i + step]) for i in range(0, count, step))
        yield from track((stats for chunk in chunks for stats in chunk), count, split)


class Survey:
    """Statistics of one split."""

    def __init__(self, stats: Iterable[ImageStats]) -> None:
        stats = list(stats)
        images = [image for image in stats if not image.error]
        self.inspected = len(stats)
        self.unreadable = [(image.id, image.error) for image in stats if image.error]
        self.formats, self.modes = Counter(image.format for image in images), Counter(image.mode for image in images)
        self.sizes = Counter(image.size for image in images)
        self.labels = Counter(image.label for image in images if image.label is not None)
        self.captions = [caption for image in images for caption in image.captions]
        self.without_caption: dict[str, list[str]] = {}  # reason -> ids
        self.digests: dict[bytes, str] = {}  # of a file -> id of the first image with it
        for image in images:
            self.digests.setdefault(image.digest, image.id)
            if image.missing_caption_reason:
                self.without_caption.setdefault(image.missing_caption_reason, []).append(image.id)
        firsts = ((image.id, self.digests[image.digest]) for image in images)
        self.duplicates = [(id, first) for id, first in firsts if id != first]  # (id, id of the same file)

    def tokens(self) -> dict[str, int]:
        """Tokens per caption with [CLS] and [SEP], of a tokenizer trained on them: median, 95th percentile, maximum."""
        if not self.captions:
            return {}
        captions = self.captions[:: -(-len(self.captions) // MAX_TOKENIZED)]
        tokenizer = CaptionTokenizer(train_wordpiece(captions, VOCAB_SIZE), 3)
        lengths = sorted(n + 2 for n in tokenizer.lengths(captions))
        return {"median": int(median(lengths)), "95 %": lengths[int(0.95 * (len(lengths) - 1))], "max": lengths[-1]}

    def count_smaller(self, size: int) -> int:
        """Number of images with a side shorter than `size`, which are enlarged in training."""
        return sum(n for (width, height), n in self.sizes.items() if min(width, height) < size)

    def count_longer(self, ratio: float) -> int:
        """Number of images with an aspect ratio above `ratio`."""
        return sum(n for sides, n in self.sizes.items() if max(sides) > ratio * min(sides))

    def to_dict(self, label_names: list[str]) -> dict:
        """The statistics as plain numbers."""
        spans = {}
        for axis, side in enumerate(("width", "height")):
            values = sorted(sides[axis] for sides in self.sizes.elements())
            spans[side] = {"min": values[0], "median": int(median(values)), "max": values[-1]} if values else {}
        names = dict(enumerate(label_names))
        captions = {"count": len(self.captions), "distinct": len(set(self.captions)), "tokens": self.tokens()}
        return {
            "inspected": self.inspected, "unreadable": len(self.unreadable), "duplicates": len(self.duplicates),
            **spans, "formats": dict(self.formats.most_common()), "modes": dict(self.modes.most_common()),
            "captions": captions,
            "without_caption": {reason: len(ids) for reason, ids in self.without_caption.items()},
            "classes": {names.get(label, str(label)): n for label, n in sorted(self.labels.items())},
        }  # fmt: skip
