"""A folder of images with COCO annotations: captions_*.json and instances_*.json."""

import json
import math
import os
import re
from dataclasses import dataclass
from posixpath import basename, dirname, normpath, splitext
from typing import Any

from latentdiff.config import UserError
from latentdiff.data.dataset import ImageDataConfig
from latentdiff.data.folder import FolderDataset
from latentdiff.data.image import EXTENSIONS
from latentdiff.data.listing import SPLITS, Listing, caption_list, scan, split_of

KINDS = ("captions", "instances")


@dataclass(frozen=True)
class CocoConfig(ImageDataConfig):
    path: str = "data/coco"  # folder with annotations/captions_train2017.json, instances_...json, and train2017/ ...

    def open(self, split: str) -> "CocoDataset":
        return CocoDataset(self, split)


class CocoDataset(FolderDataset):
    """One split of the images that the annotations list."""

    def list_files(self) -> Listing:
        return list_coco(self.config.path)

    def no_captions_reason(self) -> str:
        return "there is no captions_*.json with the other annotations"


def list_coco(root: str) -> Listing:
    """The annotated images, each with its captions and `objects`: boxes and their categories.

    objects is {"bbox": [[x, y, width, height], ...] in pixels, "categories": [...]}, as in a metadata.jsonl; categories
    are numbered from 0 in the order of their ids. The annotations of COCO itself take about 3 GB while they are read.
    """
    names = list(scan(root))
    listing, known, annotations = Listing(), set(names), _annotations(names)
    if not annotations:
        expected = "annotations/captions_train2017.json, annotations/instances_train2017.json or train_coco.json"
        raise UserError(f"data.path={root!r} holds no COCO annotations, such as {expected}")
    for name, split in annotations:
        content = _load(os.path.join(root, name))
        if isinstance(content, str):
            listing.unreadable.append((name, content))
            continue
        listing.metadata_folders.setdefault(split, _image_folder(name, split, _dicts(content, "images"), known))
        ids = _read_images(listing, name, listing.metadata_folders[split], _dicts(content, "images"), known)
        listing.splits[split] = sorted({*listing.splits.get(split, ()), *ids.values()})
        categories = _categories(_dicts(content, "categories"))
        listing.category_names = [*categories.values()] or listing.category_names
        _read_annotations(listing, name, _dicts(content, "annotations"), ids, list(categories))
    if not listing.splits:
        raise UserError(f"data.path={root!r}: no annotations can be read; {': '.join(listing.unreadable[0])}")
    listing.metadata_folders.setdefault("train", "")
    folders, listed = tuple(listing.metadata_folders.values()), {id for ids in listing.splits.values() for id in ids}
    images = [name for name in sorted(names) if name.startswith(folders) and splitext(name)[1].lower() in EXTENSIONS]
    listing.unlisted = [name for name in images if name not in listed]
    return listing


def _annotations(names: list[str]) -> list[tuple[str, str]]:
    """(file, split) of files named captions* or instances*, else of those with coco in the name, else of any JSON."""
    files = [name for name in names if name.endswith(".json")]
    chosen = [name for name in files if basename(name).startswith(KINDS)]
    chosen = chosen or [name for name in files if "coco" in basename(name)] or files
    return [(name, split_of(name)) for name in sorted(chosen)]


def _load(path: str) -> dict | str:
    """The content, or an error message."""
    try:
        with open(path, "rb") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError) as error:
        return f"is not valid JSON: {error}"
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        return 'is not a COCO annotation: it must be {"images": [...], "annotations": [...]}'
    return content


def _dicts(content: dict, name: str) -> list[Any]:
    return content[name] if isinstance(content.get(name), list) else []


def _image_folder(name: str, split: str, images: list[Any], known: set[str]) -> str:
    """The folder of the images of an annotation file: the one that contains most of its first images."""
    files = [image.get("file_name") for image in images[:50] if isinstance(image, dict)]
    stem = re.sub(rf"^({'|'.join(KINDS)})_", "", splitext(basename(name))[0])  # instances_train2017 -> train2017
    spellings = [stem, *(name for name, meaning in SPLITS.items() if meaning == split)]
    parent = dirname(name) + "/" if dirname(name) else ""
    folders = [parent, *(f"{above}{name}/" for name in spellings for above in ("", "images/", parent)), "", "images/"]
    return max(folders, key=lambda folder: sum(normpath(f"{folder}{file}") in known for file in files))


def _read_images(listing: Listing, name: str, folder: str, images: list[Any], known: set[str]) -> dict[Any, str]:
    """COCO image number -> item id, of the images that exist; the others are listed as unreadable."""
    ids = {}
    for i, image in enumerate(images):
        where = f"{name}: images[{i}]"
        if not isinstance(image, dict) or not isinstance(image.get("file_name"), str) or not _is_key(image.get("id")):
            listing.unreadable.append((where, "needs an id and a file_name"))
            continue
        id = normpath(folder + image["file_name"].replace("\\", "/"))
        if id not in known:
            listing.unreadable.append((id, f"{where} names it, but there is no such file in the folder"))
            continue
        ids[image["id"]] = id
        sides = {side: image[side] for side in ("width", "height") if isinstance(image.get(side), int)}
        listing.columns_of.setdefault(id, sides)
    return ids


def _is_key(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _categories(categories: list[Any]) -> dict[Any, str]:
    """Category number -> name, in the order of the numbers."""
    names = {c["id"]: str(c.get("name", c["id"])) for c in categories if isinstance(c, dict) and _is_key(c.get("id"))}
    return dict(sorted(names.items(), key=lambda item: (isinstance(item[0], str), item[0])))


def _read_annotations(listing: Listing, name: str, annotations: list[Any], ids: dict, categories: list) -> None:
    """Add captions and boxes to their images; without crowds, whose box is not that of one object."""
    numbers = {category: number for number, category in enumerate(categories)}
    for i, annotation in enumerate(annotations):
        if not isinstance(annotation, dict) or not _is_key(annotation.get("image_id")):
            listing.unreadable.append((f"{name}: annotations[{i}]", "needs an image_id"))
            continue
        id = ids.get(annotation["image_id"])
        if id is None:
            continue  # of an image that is already listed as unreadable
        if "caption" in annotation:
            listing.captions.setdefault(id, []).extend(caption_list(annotation["caption"]))
        if "bbox" not in annotation or annotation.get("iscrowd") == 1:
            continue
        number = numbers.get(annotation["category_id"]) if _is_key(annotation.get("category_id")) else None
        if number is None or not _is_box(annotation["bbox"]):
            listing.unreadable.append((f"{name}: annotations[{i}]", "needs bbox [x, y, width, height] and category_id"))
            continue
        objects = listing.columns_of[id].setdefault("objects", {"bbox": [], "categories": []})
        objects["bbox"].append(annotation["bbox"])
        objects["categories"].append(number)
    for id in ids.values() if categories else ():  # an image without objects has an empty list
        listing.columns_of[id].setdefault("objects", {"bbox": [], "categories": []})


def _is_box(value: object) -> bool:
    numbers = value if isinstance(value, list) and len(value) == 4 else [math.nan]
    valid = all(isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e9 for x in numbers)
    return valid and numbers[2] > 0 and numbers[3] > 0
