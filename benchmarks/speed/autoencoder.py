"""The autoencoder alone: encode and decode, whole and in tiles: time and peak memory."""

import torch
from torch import Tensor

from benchmarks.speed import machine, networks
from benchmarks.speed.race import Contestant, race, ratio
from benchmarks.speed.work import Bar, Row, Work, on_gpu, once, row, times
from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Autoencoder, untiled
from latentdiff.training import precision

WAYS = {
    "encode": untiled, "encode, exact": tiling.exact,
    "decode": untiled, "exact": tiling.exact, "blended": tiling.blended,
}  # fmt: skip


def latent(pixels: int) -> Tensor:
    return torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(1))


def picture(pixels: int) -> Tensor:
    return torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(1)) * 2 - 1


def ours(done, how: str, pixels: int, width: float) -> None:
    model = networks.autoencoder(width).requires_grad_(False)
    precision.to_device(model, machine.device())
    model.tiling = WAYS[how]
    run = Autoencoder.encode if how.startswith("encode") else Autoencoder.decode
    work(done, run, model, how, pixels)


def theirs(done, how: str, pixels: int, width: float) -> None:
    """AutoencoderKL; how "blended" and "encode, blended": with enable_tiling."""
    ours: Autoencoder = networks.autoencoder(width)
    model = networks.their_autoencoder(ours, 256).to(machine.device()).requires_grad_(False)
    if how.endswith("blended"):
        model.enable_tiling()
    decode = lambda model, z: model.decode(z).sample  # noqa: E731
    encode = lambda model, x: model.encode(x).latent_dist.mean  # noqa: E731
    work(done, encode if how.startswith("encode") else decode, model, how, pixels)


@torch.no_grad()
def work(done, function, model, how: str, pixels: int) -> None:
    x = (picture if how.startswith("encode") else latent)(pixels).to(machine.device())
    function(model, x[:, :, : x.shape[2] // 4, : x.shape[3] // 4])  # what a first call allocates for good
    done.settled()
    done.begin()
    while True:
        y = function(model, x)
        done(value=y.flatten()[:: max(1, y.numel() // 64)].tolist())


# ---- works

# memory is measured in the first call of a process that gives back what it frees
LEAN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def coding(share: float) -> list[Row]:
    found = []
    for how in ("encode", "decode"):
        for pixels, width in ((256, 1.0), (256, 0.25), (512, 0.25)):
            told = {"how": how, "pixels": pixels, "width": width}
            field = {"ours": Contestant("coding:ours", told), "diffusers": Contestant("coding:theirs", told)}
            turns = race(field, times(3 if width == 1 else 5, share))
            what = f"{how}, {pixels} pixels, {'full' if width == 1 else '1/4'} width"
            found += [
                row(what, ratio(turns["diffusers"], turns["ours"])),
                row(f"{what}: diffusers' memory against ours", ratio(turns["diffusers"], turns["ours"], "memory")),
                once(f"{what}: peak", max(turn["memory"] for turn in turns["ours"]), "MB"),
            ]
    return found


DECODERS = {  # contestant -> whose, how; the others are counted from the first
    "whole": ("ours", "decode"), "exact": ("ours", "exact"), "blended": ("ours", "blended"),
    "diffusers, whole": ("theirs", "decode"), "diffusers, blended": ("theirs", "blended"),
}  # fmt: skip
ENCODERS = {
    "encode, whole": ("ours", "encode"), "encode, exact": ("ours", "encode, exact"),
    "encode, diffusers, whole": ("theirs", "encode"), "encode, diffusers, blended": ("theirs", "encode, blended"),
}  # fmt: skip


def tiles(share: float) -> list[Row]:
    """Peaks of one call each, and what strips and tiles cost in time."""
    found, told = [], {"pixels": 1024, "width": 0.25, "warm_up": 0}
    for ways in (DECODERS, ENCODERS):
        field = {name: Contestant(f"coding:{whose}", told | {"how": how}, LEAN) for name, (whose, how) in ways.items()}
        turns = race(field, times(2, share))
        peak = {name: max(turn["memory"] for turn in each) for name, each in turns.items()}
        whole, *others = field
        found += [once(f"{name}: peak against whole", peak[name] / peak[whole], "x") for name in others]
        found += [row(f"{name}: time against whole", ratio(turns[name], turns[whole])) for name in others]
        found += [] if on_gpu() else [once(f"{whole}: peak", peak[whole], "MB")]
    return found


WORKS = [
    Work("coding", "one picture encoded or decoded by kl-f8, against AutoencoderKL in the same precision; peaks above "
         "what is resident before", coding),
    Work("tiles", "one picture of 1024 x 1024 decoded, or encoded, by kl-f8 at 1/4 width: whole, in exact strips, in "
         "blended tiles; peaks above what is resident before the call", tiles,
         {"exact: peak against whole": Bar(0.5, 0.5, "<="), "blended: peak against whole": Bar(0.25, 0.25, "<=")}),
]  # fmt: skip
