"""Data: pictures from a folder and from tars, latents from the cache, and starting where a run left off."""

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

from benchmarks.speed import machine, shipped
from benchmarks.speed.race import ROOT, Contestant, clock, race, ratio
from benchmarks.speed.work import Bar, Row, Work, once, row, times
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.build import build_autoencoder, open_tokenizer
from latentdiff.config import override, read_recipe
from latentdiff.data import encode_latents, loader
from latentdiff.data import latent_cache as caches
from latentdiff.data.folder import FolderConfig, FolderDataset
from latentdiff.data.tar import TarConfig, TarDataset
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe, open_data
from latentdiff.stage_two.batches import BatchEncoder
from latentdiff.training.distributed import SINGLE_PROCESS
from latentdiff.training.log import Log

TINY = AutoencoderConfig(channels=8, channel_mult=(1, 1, 1), num_res_blocks=1, norm_groups=4)


# ---- contestants


def pictures(done, kind: str, count: int = 64, pixels: int = 256, batch: int = 16) -> None:
    """Batches of decoded, cropped pictures; kind: folder, tars, or theirs, which is their examples' loader."""
    from benchmarks.speed import examples

    folder = Path(tempfile.mkdtemp())
    shipped.pictures(folder, SimpleNamespace(pictures=count, pixels=pixels))
    if kind == "theirs":
        stream = examples.epochs(examples.Pictures(folder, pixels), batch)
    else:
        data = FolderDataset(FolderConfig(str(folder), pixels, val_fraction=0.0), "train") if kind == "folder" else None
        data = data or TarDataset(TarConfig(str(shard(folder)), pixels, val_fraction=0.0), "train")
        stream = map(loader.images, loader.batches(data, 0, batch, [range(batch)], 0, 10**6))
    done.settled()
    while True:
        for _ in range(count // batch):
            next(stream)
        done(images=count)


def shard(folder: Path) -> Path:
    """The pictures and captions of a folder in one tar."""
    path = folder / "shards" / "train-00000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for file in sorted(p for p in folder.iterdir() if p.is_file()):
            tar.add(file, file.name)
    return path.parent


def latents(done, first: int = 0, count: int = 256, batches: int = 8) -> None:
    """What train_diffusion.py's loop asks for in every step of the demo: rows of the cache, joined by their captions, a
    sample of each posterior, tokens. A turn begins with the first batch after `first` steps."""
    folder = Path(tempfile.mkdtemp())
    words = [f"data.count={count}", "data.val_count=8", f"cache.path={folder / 'cache'}", "name=bench"]
    r = override(read_recipe(ROOT / "recipes/diffusion/demo.py", DiffusionRecipe), words)
    data, autoencoder = open_data(r, "train"), build_autoencoder(AutoencoderRecipe(autoencoder=TINY)).eval()
    log = Log(folder, SINGLE_PROCESS, 0, r.train)
    made = BatchEncoder(
        r, SINGLE_PROCESS, autoencoder, open_tokenizer(r, folder, data, SINGLE_PROCESS, print), data, log
    )
    size, micro = r.train.batch_size, loader.micro_batches(0, 1, r.train.batch_size, 1)
    done.settled()
    while True:
        stream = loader.batches(made.rows, 0, size, micro, first, 10**9)
        for step, batch in enumerate(itertools.islice(stream, batches), first):
            z, _ = made(batch, step, micro[0])
        done(images=batches * size, z=z.flatten()[:8].tolist())


class Rows:
    """A data set of so many items, of which nothing is asked but how many there are."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return "rows"


def opening(done, rows: int) -> None:
    """Opening a cache of demo latents whose files are holes, with its statistics; then batches of its rows."""
    held, config = tempfile.TemporaryDirectory(), caches.LatentCacheConfig()
    folder = Path(held.name)
    sparse(folder, rows, config)
    order = loader.Stream(Rows(rows), 0, 32)
    done.settled()
    done.begin()
    while True:
        began = time.perf_counter()
        opened = encode_latents.open_cache(
            folder, config, Rows(rows), "weights", lambda batch: None, SINGLE_PROCESS, print
        )
        opened.statistics()
        took, resident = time.perf_counter() - began, machine.resident() - done.resident
        for position in range(1024):
            opened.row(order.index(10**6, position))
        done(opening=took, opened=resident)


def sparse(folder: Path, rows: int, config: caches.LatentCacheConfig) -> None:
    """What open_cache takes for the cache of `Rows`: headers, sums and holes."""
    folder.mkdir(exist_ok=True)
    manifest = {"autoencoder": "weights", "data": "rows", "copies": 1, "rows": rows, "shard_size": config.shard_size}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    names = caches.shard_names(manifest)
    for i, (name, start) in enumerate(zip(names, range(0, rows, config.shard_size))):
        held = min(config.shard_size, rows - start)
        if 0 < i < len(names) - 1:
            os.link(folder / names[0], folder / name)
            continue
        latent = ("F32", (held, 4, 8, 8), 4)
        shapes = {"sums": ("F64", (4, 4), 8), "mean": latent, "logvar": latent, "key": ("I64", (held,), 8),
                  "id_hash": ("I64", (held,), 8), "ok": ("BOOL", (held,), 1)}  # fmt: skip
        header, end = {}, 0
        for field, (kind, shape, size) in shapes.items():
            length = size * int(np.prod(shape))
            header[field] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + length]}
            end += length
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(folder / name, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text + np.ones((4, 4)).tobytes())
            file.truncate(8 + len(text) + end)
    sizes = [(folder / name).stat().st_size for name in names]
    (folder / caches.SUMMARY).write_text(json.dumps({"bytes": sizes, "sums": np.ones((4, 4)).tolist()}))


# ---- works


def reading(share: float) -> list[Row]:
    field = {kind: Contestant("data:pictures", {"kind": kind}) for kind in ("folder", "tars", "theirs")}
    turns = race(field, times(9, share))
    return [row(f"{kind}, against their examples' loader", ratio(turns["theirs"], turns[kind]))
            for kind in ("folder", "tars")]  # fmt: skip


def feeding(share: float) -> list[Row]:
    field = {
        "step": Contestant("training:ours", {"size": "demo"}),
        "latents": Contestant("data:latents"),
        "later": Contestant("data:latents", {"first": 10**6, "batches": 1}),
        "at once": Contestant("data:latents", {"first": 0, "batches": 1}),
    }
    turns = race(field, times(9, share))
    return [
        row("latents and tokens, against what the step consumes", ratio(
            [t | {clock(): t[clock()] / t["images"]} for t in turns["step"]],
            [t | {clock(): t[clock()] / t["images"]} for t in turns["latents"]])),
        row("first batch after a resume at step 10^6, against step 0", ratio(turns["later"], turns["at once"])),
    ]  # fmt: skip


def holding(share: float) -> list[Row]:
    field = {str(rows): Contestant("data:opening", {"rows": rows, "warm_up": 0}) for rows in (10**4, 10**7)}
    turns = race(field, times(3, share))
    large, small = turns[str(10**7)], turns[str(10**4)]
    return [
        once("10^7 rows: open", max(turn["opening"] for turn in large), "s", "with the statistics"),
        once("10^7 rows: resident", max(turn["opened"] for turn in large), "MB"),
        once("10^4 rows: resident", max(turn["opened"] for turn in small), "MB"),
    ]


WORKS = [
    Work("data-pictures", "pictures of 256 x 256 out of JPEG, batches of 16, one process", reading),
    Work("data-latents", "the demo's latents from the cache, batches of 32, one process", feeding,
         {"latents and tokens, against what the step consumes": Bar(20, 20)}),
    Work("data-cache", "a cache of the demo's latents, files full of holes", holding,
         {"10^7 rows: open": Bar(1, 1, "<="), "10^7 rows: resident": Bar(200, 200, "<=")}),
]  # fmt: skip
