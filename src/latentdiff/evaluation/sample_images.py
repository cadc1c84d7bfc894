"""Sample many images into a folder: in blocks that the ranks share, and a stopped evaluation continues."""

import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.image import BadImage
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.sampling.pipeline import Pipeline
from latentdiff.training import image_grid, progress
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path
from latentdiff.training.precision import autocast, precision


class SampleSpec(NamedTuple):
    """What to sample. Image i has the conditions of item i of a dataset, or caption i of a list, and seed + i."""

    data: Any
    reads: tuple[str, ...]  # the fields that the conditions read
    captions: tuple[str, ...]  # used instead of the dataset, if not empty
    count: int
    seed: int

    def batch(self, numbers: Iterable[int]) -> dict:
        """The conditions of these images; an unreadable item is replaced by the next."""
        if self.captions:
            return {"caption": [self.captions[i % len(self.captions)] for i in numbers]}
        return loader.collate([self._item(i) | {"bad": []} for i in numbers])

    def _item(self, i: int) -> dict:
        for index in range(i, i + 100):
            try:
                return self.data.item(index % len(self.data), rng.key(self.seed, "wanted", i))
            except BadImage:
                continue
        raise UserError("100 images in a row cannot be read")


@torch.no_grad()
def sample_batch(pipeline: Pipeline, spec: SampleSpec, numbers: range, settings: SamplingConfig) -> Tensor:
    """Images `numbers` of a specification: [B, 3, H, W] in [-1, 1], in the precision of training on this device."""
    batch, seeds = spec.batch(numbers), [spec.seed + i for i in numbers]
    fields = pipeline.prepare({name: batch[name] for name in spec.reads}, strict=False)
    with autocast(pipeline.device, precision("auto", pipeline.device)):
        return pipeline.generate(fields, seeds, settings)


def sample_to_folder(
    folder: Path, pipeline: Pipeline, spec: SampleSpec, settings: SamplingConfig, world: World, batch_size: int
) -> dict[str, float]:
    """Sample the images that the folder does not have yet: 00000.png, 00001.png, ...

    Each block of `batch_size` images is sampled by one rank, so the images do not depend on the number of ranks.

    Returns: images per second and peak memory; empty if all images existed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [range(i, min(i + batch_size, spec.count)) for i in range(0, spec.count, batch_size)]
    blocks = [block for block in blocks[world.rank :: world.size] if not all(_path(folder, i).exists() for i in block)]
    bar, start, count = progress.bar(len(blocks) if world.is_main else 0, "sampling"), time.perf_counter(), 0
    for block in blocks:
        for i, image in zip(block, image_grid.to_uint8(sample_batch(pipeline, spec, block, settings))):
            with atomic_path(_path(folder, i), fsync=False) as tmp:
                Image.fromarray(image).save(tmp, format="PNG")
        count += len(block)
        bar.update()
    bar.close()
    totals = torch.tensor([count, time.perf_counter() - start], dtype=torch.float64, device=world.device)
    count, seconds = world.all_reduce_sum(totals).tolist()
    speed = count / max(seconds / world.size, 1e-9)  # the ranks have equally many blocks: their mean time is the time
    world.barrier()
    return {"images_per_second": speed, "peak_memory_mib": _peak_memory(world)} if count else {}


def _path(folder: Path, i: int) -> Path:
    return folder / f"{i:05d}.png"


def _peak_memory(world: World) -> float:
    """Peak memory of this process in MiB: of the GPU, or of the CPU without one."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
