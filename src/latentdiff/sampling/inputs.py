"""The inputs of sample.py, read and checked: prompts, classes, boxes, maps and images -> one request per image."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentdiff.conditioning.condition import ConditionConfig, Fields, option_name
from latentdiff.config import UserError
from latentdiff.data.image import BadImage, open_image, resize_and_crop
from latentdiff.layers import images_to_float


@dataclass(frozen=True)
class Request:
    """One image to sample."""

    seed: int
    fields: Fields  # what the conditions read, without batch dimension
    metadata: dict[str, Any]  # stored in the image file
    size: tuple[int, int] | None  # height and width of the image, if an input determines them

    @property
    def prompt(self) -> str | None:
        return self.fields.get("caption")

    def shapes(self) -> tuple:
        """Requests with equal shapes can be sampled in one batch."""
        tensors = {name: x for name, x in self.fields.items() if isinstance(x, Tensor) and name != "boxes"}
        return self.size, tuple((name, x.shape) for name, x in tensors.items())


def read_requests(
    options: Namespace, prompts: list[str], conditions: tuple[ConditionConfig, ...],
    class_names: dict[str, list[str]], seeds: list[int], factor: int, sr_factor: int,
) -> list[Request]:  # fmt: skip
    """Every input with every seed. Inputs of several kinds are combined one to one; a single one goes with all others.

    Args:
        conditions: settings of the conditions whose options are read.
        factor, sr_factor: of the autoencoder and of super-resolution, for the size of the images.
    """
    columns: dict[str, list[tuple[Any, Fields]]] = {}
    for condition in conditions:
        for option in condition.inputs():
            values = prompts if option == "prompt" else getattr(options, option)
            if values and option not in columns:
                sources = [source for value in values for source in _sources(condition, option, value)]
                columns[option] = [(source, condition.read_input(option, source, class_names)) for source in sources]
    counts = {option: len(column) for option, column in columns.items()}
    longest = max(counts.values(), default=1)
    if set(counts.values()) - {1, longest}:
        listed = ", ".join(f"{count} x {option_name(option)}" for option, count in counts.items())
        raise UserError(f"there are {listed}; give the same number of each, or one to be used with all others")
    requests = []
    for i in range(longest):
        inputs = {option: column[i % len(column)] for option, column in columns.items()}
        fields = {name: x for _, read in inputs.values() for name, x in read.items()}
        metadata = {option: str(source) for option, (source, _) in inputs.items() if option != "prompt"}
        size = _size(fields, conditions, metadata, factor, sr_factor)
        requests += [Request(seed, fields, metadata, size) for seed in seeds]
    return requests


def batches(requests: list[Request], batch_size: int) -> Iterator[list[Request]]:
    """Consecutive requests that can be sampled together."""
    batch: list[Request] = []
    for request in requests:
        if batch and (len(batch) == batch_size or request.shapes() != batch[0].shapes()):
            yield batch
            batch = []
        batch.append(request)
    if batch:
        yield batch


def read_prompts(prompts: list[str] | None, file: str | None) -> list[str]:
    """The values of --prompt and the lines of --prompts-file."""
    prompts = list(prompts or [])
    if file:
        try:
            prompts += [line.strip() for line in Path(file).read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--prompts-file {file} cannot be read: {error}") from error
    return prompts


def read_init_image(path: str, height: int, width: int) -> Tensor:
    """--init-image -> [1, 3, height, width] in [-1, 1], resized and center-cropped as images are in training."""
    try:
        image, _ = resize_and_crop(open_image(path), height, width, "center", 0, False)
    except BadImage as error:
        raise UserError(f"--init-image {path} {error}") from None
    return images_to_float(torch.from_numpy(image)[None])


def _sources(condition: ConditionConfig, option: str, value: str) -> list:
    """A folder stands for the files in it."""
    path = Path(value)
    if not condition.reads_files or not path.is_dir():
        return [value]
    files = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
    if not files:
        raise UserError(f"{option_name(option)} {value} is an empty folder")
    return files


def _size(
    fields: Fields, conditions: tuple[ConditionConfig, ...], metadata: dict[str, str], factor: int, sr_factor: int
) -> tuple[int, int] | None:
    """Height and width that the inputs determine; they must agree, and be multiples of the factor."""
    sizes = {}
    for condition in conditions:
        size = condition.output_size(fields, sr_factor)
        if size:
            sizes[next(option for option in condition.inputs() if option in metadata)] = size
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{option_name(option)} needs {width}x{height}" for option, (height, width) in sizes.items())
        raise UserError(f"the inputs are of different sizes: {listed}")
    for option, (height, width) in sizes.items():
        if height % factor or width % factor:
            raise UserError(
                f"{option_name(option)} {metadata[option]} needs an image of {width}x{height}; its sides must be "
                f"multiples of {factor}"
            )
        if "mask" in fields and fields["mask"].shape != fields["image"].shape[:2]:
            (h, w), (height, width) = fields["mask"].shape, fields["image"].shape[:2]
            raise UserError(
                f"--mask {metadata['mask']} is {w}x{h}, but --image {metadata['image']} is {width}x{height}; they must "
                f"have the same size"
            )
        return height, width
    return None
