"""The options of sample.py. Imports no torch, so that --help answers at once."""

import argparse
import re

from latentdiff.cli import ArgumentParser, hyphens, option_value
from latentdiff.config import UserError

HELP = """\
Conditions (those that the run requires; `--run RUN --help` lists them; each may be repeated)
  --prompt TEXT              description of the image
  --prompts-file FILE        one prompt per line (also --from-file)
  --class C                  number or name of a class
  --layout FILE              boxes and their classes, JSON                 (a folder stands for its files)
  --segmentation FILE        semantic map: an image of class numbers
  --low-res FILE             low-resolution image, for super-resolution
  --image FILE --mask FILE   inpainting: the image, and a mask of the same size, white where to inpaint; with any run

Run and output
  --run RUN                  folder or name of a run (default: the newest finished run that takes these inputs)
  --seed N | A-B             seed of the first image, or a range (default 0)
  --num-images N             images per prompt, with seeds N, N+1, ... (also --n_samples)
  --height H --width W       in pixels, multiples of the autoencoder's factor (also --H, --W); default: training size
  --batch-size N             images sampled at once (default 16); does not change any image
  --precision P              auto, fp32, bf16 or fp16 (default fp32)
  --device D                 auto, cuda or cpu
  --output DIR               output folder (also --outdir; default outputs)
  --progressive              also write a row of intermediate results for each image
  --no-grid                  do not write grid.png

Sampler
  --sampler NAME             ddpm, ddim, plms, heun, dpmpp_2m, dpmpp_2m_sde, unipc, ipndm or lcm
  --steps N                  sampling steps (also --ddim_steps, --num-inference-steps)
  --eta E                    noise of ddim: 0 deterministic, 1 ancestral
  --timestep-spacing S       trailing, linspace, quadratic, log_snr, karras or uniform (original release)
  --timestep-shift X         above 1: more steps at high noise, for images larger than in training
  --quantize-denoised        quantize x0 to the codebook at every step (VQ)
  --init-image FILE          image-to-image: start from this image, with any run
  --strength S               image-to-image: how much is changed, above 0 to 1 (default 0.6)

Guidance
  --guidance-scale S         of classifier-free guidance; 1: no guidance (also --scale, --cfg-scale)
  --guidance-rescale R       0 to 1: rescale the contrast to that without guidance
  --guidance-interval A,B    guide only at noise levels sigma / (alpha + sigma) in this range, such as 0.2,0.8
  --negative-prompt TEXT     guidance moves away from this prompt
  --autoguide RUN            autoguidance: guide away from a weaker run, or from a checkpoint folder of the same run
  --classifier RUN           guide an unconditional run towards --class (train_classifier.py)
  --classifier-scale S       its scale (default 1)
  --guide-image FILE         guide towards an image of any size: the sample, resized to it, becomes similar
  --guide-image-scale S      its scale (default 100); stochastic samplers such as ddpm follow best
  --similarity D             distance for --guide-image: l2 or lpips (default l2)

Images larger than training
  --tile-size N              sample in overlapping tiles of N pixels, with less memory
  --tile-overlap X           fraction of a tile that overlaps the next one (default 0.25)
  --tiling T                 of the autoencoder, with --tile-size: exact (default): equal to untiled, memory grows with
                             the image; offloaded: the same with bounded memory, by files in TMPDIR; blended: bounded
                             memory without files, but tones may differ between tiles"""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


# option -> (aliases, type, default); None: the setting of the run
_OPTIONS = {
    "--run": (("--model", "--ckpt"), str, None), "--prompts-file": (("--from-file",), str, None),
    "--negative-prompt": ((), str, None), "--seed": ((), str, "0"), "--num-images": (("--n-samples",), int, 1),
    "--steps": (("--ddim-steps", "--num-inference-steps"), int, None), "--sampler": ((), str, None),
    "--guidance-scale": (("--scale", "--cfg-scale"), float, None), "--guidance-rescale": ((), float, None),
    "--eta": (("--ddim-eta",), float, None), "--height": (("--H",), int, None), "--width": (("--W",), int, None),
    "--batch-size": ((), int, 16), "--precision": ((), str, "fp32"), "--device": ((), str, "auto"),
    "--output": (("--outdir", "--output-dir"), str, "outputs"), "--init-image": (("--init-img",), str, None),
    "--guidance-interval": ((), _numbers, None), "--autoguide": ((), str, None),
    "--timestep-spacing": ((), str, None), "--timestep-shift": ((), float, None), "--strength": ((), float, None),
    "--tile-size": ((), int, 0), "--tile-overlap": ((), float, None), "--tiling": ((), str, "exact"),
    "--guide-image": ((), str, None), "--guide-image-scale": ((), float, 100.0), "--similarity": ((), str, "l2"),
    "--classifier": ((), str, None), "--classifier-scale": ((), float, 1.0),
}  # fmt: skip


def sample_arguments(argv: list[str]) -> argparse.Namespace:
    """The options of sample.py; underscores and hyphens are equivalent. Every condition adds its own options."""
    from latentdiff.sampling.requirements import all_inputs  # imports torch: not for --help

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    for option, (aliases, kind, default) in _OPTIONS.items():
        parser.add_argument(option, *aliases, type=kind, default=default)
    for name in all_inputs():
        parser.add_argument("--" + name.replace("_", "-"), action="append")
    parser.add_argument("--progressive", action="store_true")
    parser.add_argument("--quantize-denoised", action="store_true", default=None)
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args([hyphens(argument) for argument in argv])
    for name in ("num_images", "steps", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    return options


def describe_run(argv: list[str]) -> str:
    """What --help adds if --run names a run: the options that the run requires."""
    name = option_value(list(argv), "--run")
    if not name:
        return ""
    from latentdiff.sampling import requirements  # imports torch: not for --help alone

    return "\n\n" + requirements.describe_run(name)


def read_seeds(text: str, count: int) -> list[int]:
    """'7' with count 3 -> 7, 8, 9; '0-15' -> 0 to 15."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise UserError(f"--seed {text}: it must be a number such as 7, or a range such as 0-15")
    first, last = int(match[1]), int(match[2] or match[1])
    if last + count > 2**63:
        raise UserError(f"--seed {text}: it must be below 2^63")
    return list(range(first, last + 1)) if match[2] else list(range(first, first + count))
