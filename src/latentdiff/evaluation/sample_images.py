"""Draw many pictures into a folder: all ranks, in blocks, and a stopped evaluation goes on."""

import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from latentdiff import rng
from latentdiff.config import UserError
from latentdiff.data import loader
from latentdiff.data.fields import stack_field
from latentdiff.data.image import BadImage
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.model import LatentDiffusion
from latentdiff.training import image_grid, progress
from latentdiff.training.distributed import World
from latentdiff.training.files import atomic_path
from latentdiff.training.precision import autocast, precision


class SampleSpec(NamedTuple):
    """What picture i shows: the conditions of an item of a data set, or a caption of a list; its seed is seed + i."""

    data: Any
    reads: tuple[str, ...]  # what the conditions read of an item
    captions: tuple[str, ...]  # where given, they are drawn and no item is read
    count: int
    seed: int

    def batch(self, numbers: range) -> dict:
        """The items of pictures `numbers`; one that cannot be read gives way to the next."""
        if self.captions:
            return {"caption": [self.captions[i % len(self.captions)] for i in numbers]}
        return loader.collate([self._item(i) | {"bad": []} for i in numbers])

    def _item(self, i: int) -> dict:
        for place in range(i, i + 100):
            try:
                return self.data.item(place % len(self.data), rng.key(self.seed, "wanted", i))
            except BadImage:
                continue
        raise UserError("100 pictures in a row cannot be read")


def fields(model: LatentDiffusion, reads: tuple[str, ...], batch: dict) -> dict:
    """What the conditions of a model read of a batch, on its device."""
    device = next(model.parameters()).device
    found = {name: stack_field(name, batch[name]).to(device) for name in reads if name != "caption"}
    return found | ({"tokens": model.tokenizer.encode(batch["caption"]).to(device)} if "caption" in reads else {})


@torch.no_grad()
def draw(model: LatentDiffusion, given: dict, seeds: list[int], settings: SamplingConfig) -> Tensor:
    """Pictures [B, 3, H, W] within [-1, 1], in the precision that training uses on this device; what a masked picture
    shows stays."""
    device = next(model.parameters()).device
    with autocast(device, precision("auto", device)):
        for z in model.draw(given, seeds, model.latent_shape(), settings):
            pass
        return model.finished(model.autoencoder.decode(z), given)


def fill(
    folder: Path, model: LatentDiffusion, wanted: SampleSpec, settings: SamplingConfig, world: World, batch_size: int
) -> dict[str, float]:
    """Draw what is not in the folder yet, as 00000.png, ...; what it cost, nothing where all was there.

    Blocks of pictures are the same for any number of ranks, and each is drawn as a whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [range(i, min(i + batch_size, wanted.count)) for i in range(0, wanted.count, batch_size)]
    mine = [block for block in blocks[world.rank :: world.size] if not all(_path(folder, i).exists() for i in block)]
    bar, started, drawn = progress.bar(len(mine) if world.is_main else 0, "drawing"), time.perf_counter(), 0
    for block in mine:
        x = draw(model, fields(model, wanted.reads, wanted.batch(block)), [wanted.seed + i for i in block], settings)
        for i, image in zip(block, image_grid.to_uint8(x)):
            with atomic_path(_path(folder, i), fsync=False) as tmp:
                Image.fromarray(image).save(tmp, format="PNG")
        drawn += len(block)
        bar.update()
    bar.close()
    seconds = torch.tensor([drawn, time.perf_counter() - started], dtype=torch.float64, device=world.device)
    total, mean = world.all_reduce_sum(seconds).tolist()
    pace = total / max(mean / world.size, 1e-9)  # ranks have equal shares, so their mean time is the time
    world.barrier()
    return {"images_per_second": pace, "peak_memory_mib": _memory(world)} if total else {}


def _path(folder: Path, i: int) -> Path:
    return folder / f"{i:05d}.png"


def _memory(world: World) -> float:
    """The most that this process has held, MiB: of the device's memory, or of the machine's."""
    if world.device.type == "cuda":
        return torch.cuda.max_memory_allocated(world.device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
