"""A folder of pictures with the annotations of COCO: captions_*.json and instances_*.json."""

import json
import math
import os
import re
from dataclasses import dataclass
from posixpath import basename, dirname, normpath, splitext
from typing import Any

from latentdiff.config import UserError
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import SPLITS, Listing, scan, split_of, texts

KINDS = ("captions", "instances")


@dataclass(frozen=True)
class CocoConfig:
    path: str = "data/coco"  # folder with annotations/captions_train2017.json, instances_...json, and train2017/ ...
    size: int = 256  # height and width in pixels that pictures are resized to cover and cropped to
    width: int = 0  # width, where it is not as the height (0: as size)
    crop: str = "center"  # center | random: which part of a picture that has another shape
    flip: bool = False  # mirror half of the views; makes captions that say left or right untrue
    val_fraction: float = 0.02  # held out for validation by a hash of the name, where no annotations are for val
    max_bad_fraction: float = 0.05  # stop when more than this share of the pictures cannot be read

    @property
    def image_size(self) -> tuple[int, int]:
        return self.size, self.width or self.size

    def open(self, split: str):
        from latentdiff.data.folder import FolderDataset

        return FolderDataset(self, split)


def list_coco(root: str) -> Listing:
    """The pictures that the annotations name, each with its captions and `objects`: boxes and their categories.

    objects is {"bbox": [[x, y, width, height], ...] in pixels, "categories": [...]}, as in a metadata.jsonl; categories
    are numbered from 0 in the order of their ids. Annotations are read whole: some 3 GB while those of COCO are read.
    """
    names = list(scan(root))
    listing, known, found = Listing(), set(names), _annotations(names)
    if not found:
        wanted = "annotations/captions_train2017.json, annotations/instances_train2017.json or train_coco.json"
        raise UserError(f"data.path={root!r} holds no annotations of COCO, such as {wanted}")
    for name, split in found:
        content = _load(os.path.join(root, name))
        if isinstance(content, str):
            listing.bad.append((name, content))
            continue
        listing.homes.setdefault(split, _home(name, split, _dicts(content, "images"), known))
        ids = _read_images(listing, name, listing.homes[split], _dicts(content, "images"), known)
        listing.splits[split] = sorted({*listing.splits.get(split, ()), *ids.values()})
        categories = _categories(_dicts(content, "categories"))
        listing.category_names = [*categories.values()] or listing.category_names
        _read_annotations(listing, name, _dicts(content, "annotations"), ids, list(categories))
    if not listing.splits:
        raise UserError(f"data.path={root!r}: no annotations can be read; {': '.join(listing.bad[0])}")
    listing.homes.setdefault("train", "")
    beside, named = tuple(listing.homes.values()), {id for ids in listing.splits.values() for id in ids}
    pictures = [name for name in sorted(names) if name.startswith(beside) and splitext(name)[1].lower() in EXTENSIONS]
    listing.orphans = [name for name in pictures if name not in named]
    return listing


def _annotations(names: list[str]) -> list[tuple[str, str]]:
    """(file, split): those whose names begin with captions or instances, else those that say coco, else any JSON."""
    files = [name for name in names if name.endswith(".json")]
    first = [name for name in files if basename(name).startswith(KINDS)]
    chosen = first or [name for name in files if "coco" in basename(name)] or files
    return [(name, split_of(name)) for name in sorted(chosen)]


def _load(path: str) -> dict | str:
    """The content, or what is wrong with it."""
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        return f"is no JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return 'is no annotation of COCO: it must be {"images": [...], "annotations": [...]}'
    return content


def _dicts(content: dict, name: str) -> list[Any]:
    return content[name] if isinstance(content.get(name), list) else []


def _home(name: str, split: str, images: list[Any], known: set[str]) -> str:
    """The folder in which the pictures of an annotation file lie: the one that has most of its first pictures."""
    some = [image.get("file_name") for image in images[:50] if isinstance(image, dict)]
    stem = re.sub(rf"^({'|'.join(KINDS)})_", "", splitext(basename(name))[0])  # instances_train2017 -> train2017
    spellings = [stem, *(word for word, meaning in SPLITS.items() if meaning == split)]
    beside = dirname(name) + "/" if dirname(name) else ""
    homes = [beside, *(f"{above}{word}/" for word in spellings for above in ("", "images/", beside)), "", "images/"]
    return max(homes, key=lambda home: sum(normpath(f"{home}{file}") in known for file in some))


def _read_images(listing: Listing, name: str, home: str, images: list[Any], known: set[str]) -> dict[Any, str]:
    """The image's number -> its id, for the pictures that are there; the others are listed as bad."""
    ids = {}
    for place, image in enumerate(images):
        where = f"{name}: images[{place}]"
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not _is_key(image.get("id")):
            listing.bad.append((where, "needs an id and a file_name"))
            continue
        id = normpath(home + image["file_name"].replace("\\", "/"))
        if id not in known:
            listing.bad.append((id, f"{where} names it, but there is no such file in the folder"))
            continue
        ids[image["id"]] = id
        sides = {side: image[side] for side in ("width", "height") if isinstance(image.get(side), int)}
        listing.rows.setdefault(id, sides)
    return ids


def _is_key(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _categories(categories: list[Any]) -> dict[Any, str]:
    """The category's number -> its name, in the order of the numbers."""
    found = {c["id"]: str(c.get("name", c["id"])) for c in categories if isinstance(c, dict) and _is_key(c.get("id"))}
    return dict(sorted(found.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _read_annotations(listing: Listing, name: str, annotations: list[Any], ids: dict, categories: list) -> None:
    """Captions and boxes into the rows of their pictures; crowds are left out: their box is no object's."""
    numbers = {category: number for number, category in enumerate(categories)}
    for place, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not _is_key(annotation.get("image_id")):
            listing.bad.append((f"{name}: annotations[{place}]", "needs an image_id"))
            continue
        id = ids.get(annotation["image_id"])
        if id is None:
            continue  # of a picture that is listed as bad already
        if "caption" in annotation:
            listing.captions.setdefault(id, []).extend(texts(annotation["caption"]))
        if "bbox" not in annotation or annotation.get("iscrowd") == 1:
            continue
        number = numbers.get(annotation["category_id"]) if _is_key(annotation.get("category_id")) else None
        if number is None or not _is_box(annotation["bbox"]):
            listing.bad.append((f"{name}: annotations[{place}]", "is no box: bbox [x, y, width, height], category_id"))
            continue
        objects = listing.rows[id].setdefault("objects", {"bbox": [], "categories": []})
        objects["bbox"].append(annotation["bbox"])
        objects["categories"].append(number)
    for id in ids.values() if categories else ():  # a picture without an object has an empty list of them
        listing.rows[id].setdefault("objects", {"bbox": [], "categories": []})


def _is_box(value: object) -> bool:
    numbers = value if isinstance(value, list) and len(value) == 4 else [math.nan]
    good = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e9 for x in numbers)
    return good and numbers[2] > 0 and numbers[3] > 0
