"""The options of sample.py and evaluate.py. Imports no torch, so that --help answers at once."""

import argparse
import re

from latentdiff.config import UserError

# ---- sample.py

SAMPLE_OPTIONS = """\
  --run RUN              a run's folder or name (default: the newest finished run that takes these inputs)
  --prompt TEXT          what to draw; may be given several times
  --prompts-file FILE    one prompt per line (also --from-file)
  --class C              a class's number or name; this and the next five may be given several times
  --layout FILE          boxes and their classes, JSON           (a folder stands for its files)
  --segmentation FILE    a map: an image of class numbers
  --low-res FILE         a small picture to be enlarged
  --image FILE           a picture to be filled ...
  --mask FILE            ... where this one, of the same size, is white; what is black stays to the bit
  --init-image FILE      a picture to draw over, with any run
  --strength S           how much of it is drawn anew: above 0 to 1 (default 0.6)
  --guide FILE           a picture of any size that the drawn one, made as small, is to resemble: with any run
  --guide-scale S        how much (default 100); stochastic samplers such as ddpm follow best
  --guide-by D           l2 or lpips, the distance (default l2)
  --classifier RUN       guide towards --class in a run that knows no classes (train_classifier.py)
  --classifier-scale S   how much (default 1)
  --negative-prompt TEXT what guidance moves away from
  --seed N | A-B         the first picture's seed, or a range (default 0)
  --num-images N         pictures per prompt, with seeds N, N+1, ... (also --n_samples)
  --steps N              sampling steps (also --ddim_steps, --num-inference-steps)
  --sampler NAME         ddpm, ddim, plms, heun, dpmpp_2m, dpmpp_2m_sde, unipc, ipndm or lcm
  --guidance-scale S     of classifier-free guidance; 1 is none (also --scale, --cfg-scale)
  --guidance-rescale R   0 to 1: pull the contrast back that guidance adds
  --guidance-interval A,B  guide only where this share is noise, for example 0.2,0.8; half the cost elsewhere
  --autoguide RUN        guide away from a worse run, or an earlier checkpoint's folder, instead of from no condition
  --spacing S            of the steps: trailing, linspace, quadratic, log_snr, karras or uniform (the original's)
  --quantize-denoised    make every guess of codes (VQ)
  --eta E                noise of ddim: 0 deterministic, 1 ancestral
  --shift X              above 1: more steps where the noise is high, for pictures larger than in training
  --tile N               draw larger pictures in overlapping tiles of N pixels, in less memory
  --overlap X            share of a tile that it has in common with the next (default 0.25)
  --coding C             with --tile, encode and decode exact (default): as the whole picture, but memory grows with it;
                         spilled: the same, bounded beside the picture itself, what waits lies in files of TMPDIR;
                         or blended: in tiles as well, bounded without files, but tones may drift
  --progressive          beside each picture a row of how it came to be
  --height H --width W   in pixels, multiples of the autoencoder's factor (also --H, --W); default: the training size
  --batch-size N         pictures drawn at once (default 16); changes no picture
  --precision P          auto, fp32, bf16 or fp16 (default fp32)
  --device D             auto, cuda or cpu
  --output DIR           where the pictures go (also --outdir; default outputs)
  --no-grid              no grid.png"""


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


# option -> (aliases, type, default); None: the run's own
_SAMPLE = {
    "--run": (("--model", "--ckpt"), str, None), "--prompts-file": (("--from-file",), str, None),
    "--negative-prompt": ((), str, None), "--seed": ((), str, "0"), "--num-images": (("--n-samples",), int, 1),
    "--steps": (("--ddim-steps", "--num-inference-steps"), int, None), "--sampler": ((), str, None),
    "--guidance-scale": (("--scale", "--cfg-scale"), float, None), "--guidance-rescale": ((), float, None),
    "--eta": (("--ddim-eta",), float, None), "--height": (("--H",), int, None), "--width": (("--W",), int, None),
    "--batch-size": ((), int, 16), "--precision": ((), str, "fp32"), "--device": ((), str, "auto"),
    "--output": (("--outdir", "--output-dir"), str, "outputs"), "--init-image": (("--init-img",), str, None),
    "--guidance-interval": ((), _numbers, None), "--autoguide": ((), str, None), "--spacing": ((), str, None),
    "--strength": ((), float, None), "--shift": ((), float, None), "--tile": ((), int, 0),
    "--overlap": ((), float, None), "--guide": ((), str, None), "--guide-scale": ((), float, 100.0),
    "--guide-by": ((), str, "l2"), "--classifier": ((), str, None), "--classifier-scale": ((), float, 1.0),
    "--coding": ((), str, "exact"),
}  # fmt: skip


def sample_arguments(words: list[str]) -> argparse.Namespace:
    """The options of sample.py; underscores are as good as hyphens."""
    parser = Parser(add_help=False, allow_abbrev=False)
    for option, (aliases, kind, default) in _SAMPLE.items():
        parser.add_argument(option, *aliases, type=kind, default=default)
    for option in ("--prompt", "--class", "--layout", "--segmentation", "--low-res", "--image", "--mask"):
        parser.add_argument(option, action="append")
    parser.add_argument("--progressive", action="store_true")
    parser.add_argument("--quantize-denoised", action="store_true", default=None)
    parser.add_argument("--grid", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args([_hyphens(word) for word in words])
    for name in ("num_images", "steps", "batch_size"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    return options


def seeds(text: str, count: int) -> list[int]:
    """'7' with count 3 -> 7, 8, 9; '0-15' -> 0 to 15."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if not match or (match[2] and int(match[2]) < int(match[1])):
        raise UserError(f"--seed {text}: it must be a number such as 7, or a range such as 0-15")
    first, last = int(match[1]), int(match[2] or match[1])
    if last + count > 2**63:
        raise UserError(f"--seed {text}: it must be below 2^63")
    return list(range(first, last + 1)) if match[2] else list(range(first, first + count))


class Parser(argparse.ArgumentParser):
    """Its errors are UserErrors."""

    def error(self, message: str) -> None:
        raise UserError(f"{message}; --help lists the options")


def _hyphens(word: str) -> str:
    option, equals, value = word.partition("=")
    return option.replace("_", "-") + equals + value if word.startswith("--") else word


# ---- evaluate.py


def evaluate_arguments(words: list[str]) -> argparse.Namespace:
    """The options of evaluate.py; those of what is drawn are None where the run's own are used."""
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("run", nargs="?")
    for option in ("--output", "--sampler", "--prompts-file", "--clip", "--reference", "--samples"):
        parser.add_argument(option)
    parser.add_argument("--features", default="auto")
    parser.add_argument("--split", choices=("val", "test", "train"), default="val")
    for option, default in (("--count", None), ("--steps", None), ("--prompts", 500), ("--batch-size", 50)):
        parser.add_argument(option, type=int, default=default)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--report", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--summary", action="store_true")
    options = parser.parse_args([_hyphens(word) for word in words])
    for name, least in (("count", 2), ("steps", 1), ("prompts", 2), ("batch_size", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.run is None and not (options.samples and options.reference):
        raise UserError("evaluate.py needs a run, or two folders of pictures: --samples DIR --reference DIR")
    return options
