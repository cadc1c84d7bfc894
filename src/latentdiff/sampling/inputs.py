"""What sample.py is given, read and checked: prompts, classes, boxes, maps and pictures -> one job per picture."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.data import fields
from latentdiff.data.image import BadImage, CropParams, fit, open_image
from latentdiff.model import LatentDiffusion
from latentdiff.sampling import requirements

WHOLE = CropParams(1.0, 0, 0, 1, 1, False)  # of a picture whose boxes are in shares of it


@dataclass(frozen=True)
class Job:
    """One picture to draw."""

    seed: int
    prompt: str | None
    fields: dict[str, Tensor]  # what the conditions read, without the batch's axis
    about: dict[str, Any]  # what is noted in the picture's file
    size: tuple[int, int] | None  # height and width of the picture, where an input says them

    def alike(self) -> tuple:
        """Jobs that agree in this are drawn in one batch."""
        return self.size, tuple((name, x.shape) for name, x in self.fields.items() if name != "boxes")


def jobs(options: Any, prompts: list[str], model: LatentDiffusion, recipe: dict, names: dict, seeds: list[int]) -> list:
    """Every input with every seed; inputs of several kinds go in pairs, one input goes with all others."""
    columns = {"prompt": [(prompt, {}) for prompt in prompts]} if prompts else {}
    for option, read in READERS.items():
        given = getattr(options, option)
        if given:
            sources = [source for word in given for source in _sources(option, word)]
            columns[option] = [(source, read(source, model, names, recipe)) for source in sources]
    counts = {requirements.option(option): len(column) for option, column in columns.items()}
    most = max(counts.values(), default=1)
    if set(counts.values()) - {1, most}:
        told = ", ".join(f"{count} x {option}" for option, count in counts.items())
        raise UserError(f"there are {told}; give as many of each, or one that goes with all of the others")
    made = []
    for i in range(most):
        row = {option: column[i % len(column)] for option, column in columns.items()}
        found = {name: x for _, fields in row.values() for name, x in fields.items()}
        about = {option: str(source) for option, (source, _) in row.items() if option != "prompt"}
        size = _size(row, found, model)
        prompt = row["prompt"][0] if prompts else None
        made += [Job(seed, prompt, found, about, size) for seed in seeds]
    return made


def batches(jobs: list[Job], batch_size: int) -> Iterator[list[Job]]:
    """Neighbours that can be drawn together."""
    batch: list[Job] = []
    for job in jobs:
        if batch and (len(batch) == batch_size or job.alike() != batch[0].alike()):
            yield batch
            batch = []
        batch.append(job)
    if batch:
        yield batch


def _size(row: dict, found: dict[str, Tensor], model: LatentDiffusion) -> tuple[int, int] | None:
    """Height and width that the inputs ask for; they must agree, and suit the autoencoder."""
    sides = {}
    for name, scale in (("segmentation", 1), ("image", 1), ("low_res", model.scale)):
        if name in found:
            sides[name] = tuple(scale * side for side in found[name].shape[:2])
    if len(set(sides.values())) > 1:
        told = ", ".join(
            f"{requirements.option(name)} asks for {width}x{height}" for name, (height, width) in sides.items()
        )
        raise UserError(f"the inputs are of different sizes: {told}")
    for name, size in sides.items():
        for side in size:
            if side % model.autoencoder.factor:
                raise UserError(
                    f"{requirements.option(name)} {row[name][0]} asks for a picture of {size[1]}x{size[0]}; its sides must be "
                    f"multiples of {model.autoencoder.factor}"
                )
        return size
    return None


# ---- one reader per option: a file (or a word) -> fields


def _sources(option: str, word: str) -> list:
    """A folder stands for the files in it."""
    path = Path(word)
    if option == "class" or not path.is_dir():
        return [word]
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise UserError(f"{requirements.option(option)} {word} is an empty folder")
    return files


def _class(word: str, model: LatentDiffusion, names: dict, recipe: dict) -> dict[str, Tensor]:
    known = names.get("label", [])
    number = known.index(word) if word in known else int(word) if word.isdigit() else -1
    count = next(c["classes"] for c in recipe["conditions"] if c["type"] == "Label")
    if not 0 <= number < count:
        told = f", or one of {', '.join(known[:count])}" if known else ""
        raise UserError(f"--class {word}: it must be a number from 0 to {count - 1}{told}")
    return {"label": torch.tensor(number)}


def _layout(path: str, model: LatentDiffusion, names: dict, recipe: dict) -> dict[str, Tensor]:
    condition = next(c for c in recipe["conditions"] if c["type"] == "Layout")
    try:
        row = json.loads(Path(path).read_text())
        objects = dict(row["objects"])
        known = names.get("boxes", [])
        objects["categories"] = [known.index(c) if c in known else c for c in objects["categories"]]
        sides = np.array([row.get("width", 1), row.get("height", 1)] * 2, np.float64)
        objects["bbox"] = np.array(objects["bbox"], np.float64).reshape(-1, 4) / sides
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        example = '{"objects": {"bbox": [[x, y, width, height], ...], "categories": [0, ...]}}'
        raise UserError(f"--layout {path} cannot be read ({error}); it must be {example}") from None
    for box in objects["bbox"]:
        if min(box[2:]) <= 0 or min(box[:2]) < -1e-6 or max(box[:2] + box[2:]) > 1 + 1e-6:
            told = ", ".join(f"{v:g}" for v in box * sides)
            within = "1 x 1 (boxes are in shares, unless the file names width and height)"
            within = f"{sides[0]:g} x {sides[1]:g}" if "width" in row else within
            raise UserError(f"--layout {path}: the box [{told}] is not inside the picture of {within}")
    if len(objects["bbox"]) > condition["objects"]:
        raise UserError(f"--layout {path} has {len(objects['bbox'])} boxes; this run takes {condition['objects']}")
    boxes = _checked("layout", path, lambda: fields.follow_boxes(objects, WHOLE), "boxes", condition["classes"])
    return {"boxes": torch.from_numpy(boxes)}


def _segmentation(path: str, model: LatentDiffusion, names: dict, recipe: dict) -> dict[str, Tensor]:
    count = next(c["classes"] for c in recipe["conditions"] if c["type"] == "Semantic")
    read = lambda: np.asarray(fields.open_map(path))  # noqa: E731
    return {"segmentation": torch.from_numpy(_checked("segmentation", path, read, "segmentation", count).copy())}


def _checked(option: str, path: str, read: Callable[[], np.ndarray], field: str, classes: int) -> np.ndarray:
    """What was read, if the condition knows all classes in it."""
    try:
        value = read()
        fields.check_classes(field, value, classes)
    except BadImage as error:
        raise UserError(f"--{option} {path}: {error}") from None
    return value


def picture(option: str, path: str) -> Tensor:
    """uint8 [H, W, 3]."""
    try:
        return torch.from_numpy(np.array(open_image(path)))
    except BadImage as error:
        raise UserError(f"--{option} {path} {error}") from None


def _image(path: str, *_: Any) -> dict[str, Tensor]:
    return {"image": picture("image", path)}


def _low_res(path: str, *_: Any) -> dict[str, Tensor]:
    return {"low_res": picture("low-res", path)}


def _mask(path: str, *_: Any) -> dict[str, Tensor]:
    mask = picture("mask", path).float().mean(dim=2) > 127
    if not mask.any():
        raise UserError(f"--mask {path} is black all over; it must be white where the picture is to be filled")
    return {"mask": mask.to(torch.uint8)}


READERS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "class": _class, "layout": _layout, "segmentation": _segmentation, "low_res": _low_res, "image": _image,
    "mask": _mask,
}  # fmt: skip


def check_masks(jobs: list[Job]) -> None:
    """A mask must be as large as its picture."""
    for job in jobs:
        if "mask" in job.fields and job.fields["mask"].shape != job.fields["image"].shape[:2]:
            (h, w), (height, width) = job.fields["mask"].shape, job.fields["image"].shape[:2]
            raise UserError(
                f"--mask {job.about['mask']} is {w}x{h}, but --image {job.about['image']} is {width}x{height}; they "
                f"must be of the same size"
            )


def start_image(path: str, height: int, width: int) -> Tensor:
    """--init-image -> [1, 3, height, width] in [-1, 1]: resized to cover and cropped, as pictures are in training."""
    try:
        image, _ = fit(open_image(path), height, width, "center", 0, False)
    except BadImage as error:
        raise UserError(f"--init-image {path} {error}") from None
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
