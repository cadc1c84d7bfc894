"""Measures a data set as training will see it: every picture decoded, every caption read."""

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

MOST_TOKENIZED = 20_000  # captions whose tokens are counted
VOCABULARY = 30_522  # of the tokenizer that counts them, as the recipes' default


class Look(NamedTuple):
    """What one picture shows of itself; `reason` where it cannot be read."""

    id: str
    reason: str = ""
    kind: str = ""  # JPEG, PNG ...
    mode: str = ""  # of the file: RGB, L ...
    size: tuple[int, int] = (0, 0)  # width, height, after its EXIF turn
    digest: bytes = b""  # of the file
    captions: tuple[str, ...] = ()
    silence: str = ""  # why it has no caption
    label: int | None = None


def look(data: Any, i: int) -> Look:
    """Decode picture i, as training does."""
    id = data.id(i)
    try:
        content = data.content(i)
        size = open_image(BytesIO(content)).size
        with Image.open(BytesIO(content), formats=FORMATS) as header:
            kind, mode = header.format, header.mode
        captions, digest = data.texts(i), hashlib.blake2b(content, digest_size=16).digest()
        silence = "" if captions else data.silence(i)
        return Look(id, "", kind, mode, size, digest, tuple(captions), silence, data.record(i, 0).get("label"))
    except BadImage as error:
        return Look(id, str(error))


def looks(data: Any, count: int, what: str, threads: int) -> Iterator[Look]:
    """`count` pictures of the split, spread evenly; Pillow decodes in several threads."""
    places, step = [i * len(data) // count for i in range(count)], 32 * threads
    with ThreadPoolExecutor(threads) as pool:
        chunks = (pool.map(partial(look, data), places[start : start + step]) for start in range(0, count, step))
        yield from track((seen for chunk in chunks for seen in chunk), count, what)


class Survey:
    """The sums over one split."""

    def __init__(self, found: Iterable[Look]) -> None:
        self.count, self.captions = 0, []
        self.unreadable: list[tuple[str, str]] = []  # (id, reason)
        self.silent: dict[str, list[str]] = {}  # why there is no caption -> ids
        self.digests: dict[bytes, str] = {}
        self.copies: list[tuple[str, str]] = []  # (id, id of a file with the same bytes)
        self.kinds, self.modes, self.sizes, self.labels = Counter(), Counter(), Counter(), Counter()
        for seen in found:
            self._add(seen)

    def _add(self, seen: Look) -> None:
        self.count += 1
        if seen.reason:
            self.unreadable.append((seen.id, seen.reason))
            return
        self.kinds[seen.kind] += 1
        self.modes[seen.mode] += 1
        self.sizes[seen.size] += 1
        self.captions += seen.captions
        if seen.silence:
            self.silent.setdefault(seen.silence, []).append(seen.id)
        if seen.label is not None:
            self.labels[seen.label] += 1
        if self.digests.setdefault(seen.digest, seen.id) != seen.id:
            self.copies.append((seen.id, self.digests[seen.digest]))

    def tokens(self) -> dict[str, int]:
        """Tokens per caption, [CLS] and [SEP] included, by a tokenizer trained on them: median, 95 % and most."""
        some = self.captions[:: -(-len(self.captions) // MOST_TOKENIZED)] if self.captions else []
        if not some:
            return {}
        lengths = sorted(n + 2 for n in CaptionTokenizer(train_wordpiece(some, VOCABULARY), 3).lengths(some))
        return {"median": int(median(lengths)), "95 %": lengths[int(0.95 * (len(lengths) - 1))], "most": lengths[-1]}

    def smaller(self, size: int) -> int:
        """How many pictures have a side shorter than `size`, so that they are enlarged."""
        return sum(n for (width, height), n in self.sizes.items() if min(width, height) < size)

    def longer(self, ratio: float) -> int:
        """How many pictures have one side more than `ratio` times the other."""
        return sum(n for sides, n in self.sizes.items() if max(sides) > ratio * min(sides))

    def to_dict(self, label_names: list[str]) -> dict:
        """Plain numbers, for JSON and the screen."""
        spans = {}
        for place, side in enumerate(("width", "height")):
            values = sorted(sides[place] for sides in self.sizes.elements())
            spans[side] = {"least": values[0], "median": int(median(values)), "most": values[-1]} if values else {}
        names = dict(enumerate(label_names))
        captions = {"count": len(self.captions), "distinct": len(set(self.captions)), "tokens": self.tokens()}
        return {
            "looked_at": self.count, "unreadable": len(self.unreadable), "copies": len(self.copies), **spans,
            "formats": dict(self.kinds.most_common()), "modes": dict(self.modes.most_common()), "captions": captions,
            "without_caption": {why: len(ids) for why, ids in self.silent.items()},
            "classes": {names.get(label, str(label)): n for label, n in sorted(self.labels.items())},
        }  # fmt: skip
