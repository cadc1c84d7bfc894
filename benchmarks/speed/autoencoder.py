"""The autoencoder alone: time and peak memory of encode and decode, untiled and tiled."""

import torch
from torch import Tensor

from benchmarks.speed import machine, networks
from benchmarks.speed.benchmark import Benchmark, Measurement, Target, on_gpu, scaled, single, spread
from benchmarks.speed.interleave import Implementation, interleave, ratio
from latentdiff.autoencoder import tiling
from latentdiff.autoencoder.autoencoder import Autoencoder, untiled
from latentdiff.training import precision

TILINGS = {
    "encode": untiled, "encode, exact": tiling.exact,
    "decode": untiled, "exact": tiling.exact, "blended": tiling.blended,
}  # fmt: skip


def random_latent(pixels: int) -> Tensor:
    return torch.randn(1, 4, pixels // 8, pixels // 8, generator=torch.Generator().manual_seed(1))


def random_image(pixels: int) -> Tensor:
    return torch.rand(1, 3, pixels, pixels, generator=torch.Generator().manual_seed(1)) * 2 - 1


def run_latentdiff(record, mode: str, pixels: int, width: float) -> None:
    model = networks.autoencoder(width).requires_grad_(False)
    precision.to_device(model, machine.device())
    model.tiling = TILINGS[mode]
    function = Autoencoder.encode if mode.startswith("encode") else Autoencoder.decode
    repeat(record, function, model, mode, pixels)


def run_diffusers(record, mode: str, pixels: int, width: float) -> None:
    """AutoencoderKL; modes "blended" and "encode, blended": with enable_tiling."""
    model = networks.diffusers_autoencoder(networks.autoencoder(width), 256).to(machine.device()).requires_grad_(False)
    if mode.endswith("blended"):
        model.enable_tiling()
    decode = lambda model, z: model.decode(z).sample  # noqa: E731
    encode = lambda model, x: model.encode(x).latent_dist.mean  # noqa: E731
    repeat(record, encode if mode.startswith("encode") else decode, model, mode, pixels)


@torch.no_grad()
def repeat(record, function, model, mode: str, pixels: int) -> None:
    x = (random_image if mode.startswith("encode") else random_latent)(pixels).to(machine.device())
    function(model, x[:, :, : x.shape[2] // 4, : x.shape[3] // 4])  # permanent allocations of a first call
    record.reset_memory()
    record.begin()
    while True:
        y = function(model, x)
        record(value=y.flatten()[:: max(1, y.numel() // 64)].tolist())


# ---- benchmarks

# memory is measured in the first call of a process whose allocator returns freed memory
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def encode_decode(repeats: float) -> list[Measurement]:
    measurements = []
    for mode in ("encode", "decode"):
        for pixels, width in ((256, 1.0), (256, 0.25), (512, 0.25)):
            options = {"mode": mode, "pixels": pixels, "width": width}
            results = interleave(
                {name: Implementation(f"autoencoder:run_{name}", options) for name in ("latentdiff", "diffusers")},
                scaled(3 if width == 1 else 5, repeats),
            )
            diffusers, latentdiff = results["diffusers"], results["latentdiff"]
            name = f"{mode}, {pixels} pixels, {'full' if width == 1 else '1/4'} width"
            measurements += [
                spread(f"{name}: speedup over diffusers", ratio(diffusers, latentdiff)),
                spread(f"{name}: memory, diffusers / latentdiff", ratio(diffusers, latentdiff, "memory")),
                single(f"{name}: peak memory", max(repeat["memory"] for repeat in latentdiff), "MB"),
            ]
    return measurements


DECODERS = {  # name -> implementation, mode; the first is the baseline of the others
    "untiled": ("latentdiff", "decode"), "exact": ("latentdiff", "exact"), "blended": ("latentdiff", "blended"),
    "diffusers, untiled": ("diffusers", "decode"), "diffusers, blended": ("diffusers", "blended"),
}  # fmt: skip
ENCODERS = {
    "encode, untiled": ("latentdiff", "encode"), "encode, exact": ("latentdiff", "encode, exact"),
    "encode, diffusers, untiled": ("diffusers", "encode"),
    "encode, diffusers, blended": ("diffusers", "encode, blended"),
}  # fmt: skip


def tiles(repeats: float) -> list[Measurement]:
    """Peak memory of one call each, and the time that tiling costs."""
    measurements, options = [], {"pixels": 1024, "width": 0.25, "warm_up": 0}
    for modes in (DECODERS, ENCODERS):
        implementations = {
            name: Implementation(f"autoencoder:run_{library}", options | {"mode": mode}, RETURN_MEMORY)
            for name, (library, mode) in modes.items()
        }
        results = interleave(implementations, scaled(2, repeats))
        peak = {name: max(repeat["memory"] for repeat in result) for name, result in results.items()}
        base, *others = modes
        measurements += [single(f"{name}: memory / untiled", peak[name] / peak[base], "x") for name in others]
        measurements += [spread(f"{name}: time / untiled", ratio(results[name], results[base])) for name in others]
        measurements += [] if on_gpu() else [single(f"{base}: peak memory", peak[base], "MB")]
    return measurements


BENCHMARKS = [
    Benchmark("autoencoder", "one image encoded or decoded by kl-f8, compared with AutoencoderKL in the same "
              "precision; peak memory above that before the call", encode_decode),
    Benchmark("tiles", "one image of 1024 x 1024 decoded, or encoded, by kl-f8 at 1/4 width: untiled, in exact strips, "
              "in blended tiles; peak memory above that before the call", tiles,
              {"exact: memory / untiled": Target(0.5, 0.5, "<="),
               "blended: memory / untiled": Target(0.25, 0.25, "<=")}),
]  # fmt: skip
