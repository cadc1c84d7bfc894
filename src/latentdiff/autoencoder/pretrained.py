"""The pretrained weights of LPIPS: from a file, $LATENTDIFF_WEIGHTS, the package lpips or a download."""

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

TORCHVISION_MODELS = {"vgg16": "vgg16", "squeezenet": "squeezenet1_1"}
FILES = {  # backbone -> file names in $LATENTDIFF_WEIGHTS
    "vgg16": ("vgg16-imagenet.safetensors", "vgg16-397923af.pth"),
    "squeezenet": ("squeezenet1_1-imagenet.safetensors", "squeezenet1_1-b8a52dc0.pth"),
}
HEADS = {  # backbone -> name in the LPIPS release, first digits of the file's sha256, sha256 of the values
    "vgg16": ("vgg", "a78928a0", "09016f6c713efecd87823d0ac57b392f1c5c47de4e54122e04c71f80cc4650a3"),
    "squeezenet": ("squeeze", "4a5350f2", "55d9bd39ee2c777937ec5fa22a32531971c306d30dcf0d0e799648c767be7e5f"),
}
RELEASE = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/082bb24f84c091ea94de2867d34c4544f68e0963"


def backbone_weights(name: str, file: str = "") -> dict[str, Tensor]:
    """The ImageNet weights of a backbone's `features`, with torchvision's names."""
    path = Path(file) if file else _in_weights_dir(FILES[name])
    what = TORCHVISION_MODELS[name]
    weights = read_state_dict(path) if path else _download(_torchvision_weights, name, what, FILES[name])
    return {key.removeprefix("features."): value for key, value in weights.items() if key.startswith("features.")}


def lpips_heads(name: str, file: str = "") -> list[Tensor]:
    """The released heads of LPIPS 0.1, one [1, C, 1, 1] per layer that is compared."""
    short, _, digest = HEADS[name]
    names = (f"lpips_v0.1_{short}_lin.safetensors", f"{short}.pth")
    path = Path(file) if file else _in_weights_dir(names) or _in_lpips_package(short)
    what = f"the LPIPS heads of {name}"
    weights = read_state_dict(path) if path else _download(_released_heads, name, what, names)
    if not file and values_digest(weights) != digest:
        raise UserError(f"{path or 'the download'} does not hold the published LPIPS heads of {name}; delete it")
    return [weights[key] for key in sorted(weights)]


def features(name: str) -> nn.Sequential:
    """torchvision's convolutional layers of a backbone, on the meta device; assign weights before use."""
    with torch.device("meta"):
        return getattr(_torchvision().models, TORCHVISION_MODELS[name])(weights=None).features


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a state dict from .safetensors, or from a pickle of tensors only."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"there is no weights file {path}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as weights: {error}") from error


def values_digest(weights: dict[str, Tensor]) -> str:
    """sha256 of names and float32 values, independent of the file format."""
    digest = hashlib.sha256()
    for key, value in sorted(weights.items()):
        digest.update(key.encode())
        digest.update(value.float().contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def weights_dir() -> Path:
    return Path(os.environ.get("LATENTDIFF_WEIGHTS", "weights"))


def _in_weights_dir(names: tuple[str, ...]) -> Path | None:
    return next((weights_dir() / name for name in names if (weights_dir() / name).is_file()), None)


def _in_lpips_package(short: str) -> Path | None:
    """The heads in the installed package `lpips`, which is not imported."""
    spec = importlib.util.find_spec("lpips")
    folders = spec.submodule_search_locations if spec else ()
    paths = (Path(folder) / "weights" / "v0.1" / f"{short}.pth" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def _torchvision_weights(name: str) -> dict[str, Tensor]:
    weights = _torchvision().models.get_model_weights(TORCHVISION_MODELS[name]).IMAGENET1K_V1
    return weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)


def _released_heads(name: str) -> dict[str, Tensor]:
    short, digits, _ = HEADS[name]
    url, file_name = f"{RELEASE}/lpips/weights/v0.1/{short}.pth", f"lpips_v0.1_{short}_lin-{digits}.pth"
    return torch.hub.load_state_dict_from_url(
        url, file_name=file_name, progress=False, check_hash=True, map_location="cpu", weights_only=True
    )


def _download(function: Callable[[str], dict], name: str, what: str, files: tuple[str, ...]) -> dict[str, Tensor]:
    try:
        return function(name)
    except (OSError, RuntimeError) as error:  # no network (URLError is an OSError), or a wrong checksum
        raise UserError(
            f"the weights of {what} were not found and cannot be downloaded ({error}); put {' or '.join(files)} into "
            f"{weights_dir()}/ (set LATENTDIFF_WEIGHTS for another folder), or set loss.perceptual=None"
        ) from error


def _torchvision():
    try:
        import torchvision
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision cannot be imported ({error}); install it from the same index as torch, "
            "or set loss.perceptual=None"
        ) from error
    return torchvision
