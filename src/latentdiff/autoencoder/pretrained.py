"""Weights that others trained, for LPIPS: from a given file, a folder, a package, torchvision's cache or a download."""

import hashlib
import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from latentdiff.config import UserError

MODELS = {"vgg16": "vgg16", "squeezenet": "squeezenet1_1"}  # our name -> torchvision's
FILES = {  # what $LATENTDIFF_WEIGHTS may hold
    "vgg16": ("vgg16-imagenet.safetensors", "vgg16-397923af.pth"),
    "squeezenet": ("squeezenet1_1-imagenet.safetensors", "squeezenet1_1-b8a52dc0.pth"),
}
HEADS = {  # backbone -> name in the LPIPS release, first digits of the file's sha256, sha256 of the values
    "vgg16": ("vgg", "a78928a0", "09016f6c713efecd87823d0ac57b392f1c5c47de4e54122e04c71f80cc4650a3"),
    "squeezenet": ("squeeze", "4a5350f2", "55d9bd39ee2c777937ec5fa22a32531971c306d30dcf0d0e799648c767be7e5f"),
}
RELEASE = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"


def backbone(name: str, file: str = "") -> dict[str, Tensor]:
    """The ImageNet weights of a backbone's `features`, by torchvision's names within it."""
    path = Path(file) if file else _in_folder(FILES[name])
    weights = read(path) if path else _fetch(lambda: _torchvision_weights(name), MODELS[name], FILES[name])
    return {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}


def heads(name: str, file: str = "") -> list[Tensor]:
    """The published weights of LPIPS 0.1, one [1, C, 1, 1] per tap of the backbone."""
    short, _, digest = HEADS[name]
    names = (f"lpips_v0.1_{short}_lin.safetensors", f"{short}.pth")
    path = Path(file) if file else _in_folder(names) or _in_package(short)
    weights = read(path) if path else _fetch(lambda: _released_heads(name), f"the LPIPS heads of {name}", names)
    if not file and values_digest(weights) != digest:
        raise UserError(f"{path or 'the download'} does not hold the published LPIPS heads of {name}; delete it")
    return [weights[key] for key in sorted(weights)]


def features(name: str) -> nn.Sequential:
    """torchvision's convolutional part of the backbone, without storage: weights are to be assigned."""
    with torch.device("meta"):
        return getattr(_torchvision().models, MODELS[name])(weights=None).features


def read(path: Path) -> dict[str, Tensor]:
    """A state dict out of .safetensors, or out of a pickle that may hold nothing but tensors."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no file of weights at {path}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error


def values_digest(weights: dict[str, Tensor]) -> str:
    """sha256 over names and float32 values, whatever the file format."""
    total = hashlib.sha256()
    for key, value in sorted(weights.items()):
        total.update(key.encode())
        total.update(value.float().contiguous().numpy().astype("<f4").tobytes())
    return total.hexdigest()


def folder() -> Path:
    return Path(os.environ.get("LATENTDIFF_WEIGHTS", "weights"))


def _in_folder(names: tuple[str, ...]) -> Path | None:
    return next((folder() / name for name in names if (folder() / name).is_file()), None)


def _in_package(short: str) -> Path | None:
    """The heads inside the package `lpips`, found without importing it."""
    package = importlib.util.find_spec("lpips")
    paths = (
        [Path(p) / "weights" / "v0.1" / f"{short}.pth" for p in package.submodule_search_locations] if package else []
    )
    return next((path for path in paths if path.is_file()), None)


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    weights = _torchvision().models.get_model_weights(MODELS[name]).IMAGENET1K_V1
    return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)


def _released_heads(name: str) -> dict[str, Tensor]:
    short, digits, _ = HEADS[name]
    url, kept = f"{RELEASE}/lpips/weights/v0.1/{short}.pth", f"lpips_v0.1_{short}_lin-{digits}.pth"
    return torch.hub.load_state_dict_from_url(
        url, file_name=kept, progress=False, check_hash=True, map_location="cpu", weights_only=True
    )


def _fetch(download: Callable[[], dict[str, Tensor]], what: str, names: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        return download()
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), or a wrong checksum
        raise UserError(
            f"the weights of {what} are not here and cannot be downloaded ({error}); fetch {' or '.join(names)} "
            f"into {folder()}/ (the variable LATENTDIFF_WEIGHTS names another folder), or set loss.perceptual=None"
        ) from error


def _torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision cannot be imported ({error}); it must come from the same index as torch. "
            "Without it set loss.perceptual=None"
        ) from error
    return torchvision
