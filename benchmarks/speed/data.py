"""Data loading: images from a folder and from tar shards, latents from the cache, and resuming."""

import itertools
import json
import os
import struct
import tarfile
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.speed import machine, training_loops
from benchmarks.speed.benchmark import Benchmark, Measurement, Target, scaled, single, spread
from benchmarks.speed.interleave import ROOT, Implementation, interleave, ratio, time_key
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.build import build_autoencoder, build_diffusion
from latentdiff.config import override, read_recipe
from latentdiff.data import encode_latents, latent_cache, loader
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.tar import TarConfig, TarDataset
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe, open_data
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.stage_two.components import open_tokenizer
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.log import Log

TINY = AutoencoderConfig(channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4)


# ---- implementations


def load_images(record, kind: str, count: int = 64, pixels: int = 256, batch: int = 16) -> None:
    """Batches of decoded and cropped images; kind: folder, tar, or diffusers, the loader of its examples."""
    from benchmarks.speed import diffusers_examples

    folder = Path(tempfile.mkdtemp())
    training_loops.write_images(folder, SimpleNamespace(images=count, pixels=pixels))
    if kind == "diffusers":
        stream = diffusers_examples.epochs(diffusers_examples.ImageFolder(folder, pixels), batch)
    else:
        data = FolderDataset(FolderConfig(str(folder), pixels, val_fraction=0.0), "train") if kind == "folder" else None
        data = data or TarDataset(TarConfig(str(write_shard(folder)), pixels, val_fraction=0.0), "train")
        stream = map(loader.images, loader.batches(data, 0, batch, [range(batch)], 0, 10**6))
    record.reset_memory()
    while True:
        for _ in range(count // batch):
            next(stream)
        record(images=count)


def write_shard(folder: Path) -> Path:
    """Write the images and captions of a folder to one tar file; the folder of the shard."""
    path = folder / "shards" / "train-00000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            tar.add(file, file.name)
    return path.parent


def load_latents(record, first: int = 0, count: int = 256, batches: int = 8) -> None:
    """What the loop of train_diffusion.py reads per step of the demo: entries of the cache with their captions, a
    posterior sample, tokens. A repeat starts with the first batch after `first` steps."""
    folder = Path(tempfile.mkdtemp())
    overrides = [f"data.count={count}", "data.val_count=8", f"cache.path={folder / 'cache'}", "name=bench"]
    r = override(read_recipe(ROOT / "recipes/diffusion/demo.py", DiffusionRecipe), overrides)
    data, autoencoder = open_data(r, "train"), build_autoencoder(AutoencoderRecipe(autoencoder=TINY)).eval()
    log = Log(folder, SINGLE_PROCESS, 0, r.train)
    tokenizer = open_tokenizer(r, folder, data, SINGLE_PROCESS, print)
    prepare = build_diffusion(r, autoencoder, tokenizer).conditioner.prepare
    encode_batch = BatchEncoder(
        r, SINGLE_PROCESS, autoencoder, data, r.conditions, r.derived_fields, prepare, log
    )  # fmt: skip
    size, positions = r.train.batch_size, loader.micro_batches(0, 1, r.train.batch_size, 1)
    record.reset_memory()
    while True:
        stream = loader.batches(encode_batch.data, 0, size, positions, first, 10**9)
        for step, batch in enumerate(itertools.islice(stream, batches), first):
            z, _ = encode_batch(batch, step, positions[0])
        record(images=batches * size, z=z.flatten()[:8].tolist())


class Dataset:
    """A dataset that has only a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return "benchmark"


def open_cache(record, entries: int) -> None:
    """Open a cache of demo-sized latents, whose files are sparse, with its statistics; then read some entries."""
    temporary, config = tempfile.TemporaryDirectory(), latent_cache.LatentCacheConfig()
    folder = Path(temporary.name)
    write_sparse_cache(folder, entries, config)
    order = loader.Stream(Dataset(entries), 0, 32)
    record.reset_memory()
    record.begin()
    while True:
        start = time.perf_counter()
        cache = encode_latents.open_cache(
            folder, config, Dataset(entries), "weights", lambda batch: None, SINGLE_PROCESS, print
        )
        cache.statistics()
        seconds, resident = time.perf_counter() - start, machine.resident() - record.resident
        for position in range(1024):
            cache.entry(order.index(10**6, position))
        record(open_seconds=seconds, resident=resident)


def write_sparse_cache(folder: Path, entries: int, config: latent_cache.LatentCacheConfig) -> None:
    """Write what open_cache accepts as the cache of `Dataset`: headers and sums of shards, without their content."""
    folder.mkdir(exist_ok=True)
    manifest = {"autoencoder": "weights", "data": "benchmark", "copies": 1, "entries": entries,
                "shard_size": config.shard_size}  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = latent_cache.shard_names(manifest)
    for i, (name, start) in enumerate(zip(names, range(0, entries, config.shard_size))):
        size = min(config.shard_size, entries - start)
        if 0 < i < len(names) - 1:
            os.link(folder / names[0], folder / name)
            continue
        latent = ("F32", (size, 4, 8, 8), 4)
        arrays = {"sums": ("F64", (4, 4), 8), "mean": latent, "logvar": latent, "key": ("I64", (size,), 8),
                  "id_hash": ("I64", (size,), 8), "ok": ("BOOL", (size,), 1)}  # fmt: skip
        header, end = {}, 0
        for field, (dtype, shape, bytes_per_value) in arrays.items():
            length = bytes_per_value * int(np.prod(shape))
            header[field] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + length]}
            end += length
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + np.ones((4, 4)).tobytes())
            file.truncate(8 + len(text) + end)
    sizes = [(folder / name).stat().st_size for name in names]
    (folder / latent_cache.SUMMARY).write_text(json.dumps({"bytes": sizes, "sums": np.ones((4, 4)).tolist()}))


# ---- benchmarks


def images(repeats: float) -> list[Measurement]:
    kinds = ("folder", "tar", "diffusers")
    results = interleave(
        {kind: Implementation("data:load_images", {"kind": kind}) for kind in kinds}, scaled(9, repeats)
    )
    return [spread(f"{kind}: speedup over the loader of diffusers' examples",
                   ratio(results["diffusers"], results[kind])) for kind in ("folder", "tar")]  # fmt: skip


def latents(repeats: float) -> list[Measurement]:
    implementations = {
        "step": Implementation("training:run_latentdiff", {"size": "demo"}),
        "latents": Implementation("data:load_latents"),
        "resumed": Implementation("data:load_latents", {"first": 10**6, "batches": 1}),
        "start": Implementation("data:load_latents", {"first": 0, "batches": 1}),
    }
    results = interleave(implementations, scaled(9, repeats))
    per_image = {name: [{time_key(): repeat[time_key()] / repeat["images"]} for repeat in results[name]]
                 for name in ("step", "latents")}  # fmt: skip
    return [
        spread("latents and tokens: images/s over those of the training step", ratio(*per_image.values())),
        spread("first batch: time when resuming at step 10^6 / at step 0", ratio(results["resumed"], results["start"])),
    ]


def cache(repeats: float) -> list[Measurement]:
    implementations = {
        count: Implementation("data:open_cache", {"entries": count, "warm_up": 0}) for count in (10**4, 10**7)
    }
    results = interleave(implementations, scaled(3, repeats))
    large, small = results[10**7], results[10**4]
    return [
        single(
            "10^7 entries: time to open", max(repeat["open_seconds"] for repeat in large), "s", "with the statistics"
        ),
        single("10^7 entries: resident memory", max(repeat["resident"] for repeat in large), "MB"),
        single("10^4 entries: resident memory", max(repeat["resident"] for repeat in small), "MB"),
    ]


BENCHMARKS = [
    Benchmark("data-images", "images of 256 x 256 from JPEG files, batches of 16, one process", images),
    Benchmark("data-latents", "the demo's latents from the cache, batches of 32, one process", latents,
              {"latents and tokens: images/s over those of the training step": Target(20, 20)}),
    Benchmark("data-cache", "a cache of demo-sized latents in sparse files", cache,
              {"10^7 entries: time to open": Target(1, 1, "<="),
               "10^7 entries: resident memory": Target(200, 200, "<=")}),
]  # fmt: skip
