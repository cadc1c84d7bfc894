"""Pictures -> features: the space in which sets of pictures are compared, and a name for it beside every number."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.config import UserError
from latentdiff.evaluation import feature_net
from latentdiff.evaluation.feature_net import resize
from latentdiff.training import checkpoint
from latentdiff.training.distributed import World

INCEPTION = ("weights-inception-2015-12-05-6726825d.pth", "6726825d")  # torch-fidelity's file, first digits of its hash
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, for pictures in [0, 1]
CHOICES = "auto, inception, own, autoencoder, or a file (squeezenet, mobilenet, a run's features.safetensors)"


class Extractor(NamedTuple):
    """Pictures [B, 3, H, W] in [-1, 1] -> features [B, D] and, where the network names classes, logits [B, K]."""

    about: dict  # which network, from where, at what size: stands beside every number
    network: Callable[[Tensor], tuple[Tensor, Tensor | None]]


def find(choice: str, data: Any, autoencoder: Autoencoder | None, folder: Path, world: World) -> Extractor:
    """auto: Inception where its weights lie, else a network that learns the data's labels and captions.

    That network is kept as features.safetensors in `folder`; data that says nothing is seen by the autoencoder.
    """
    own, device = folder / "features.safetensors", world.device
    if choice == "auto":
        choice = "inception" if _inception_file() else "own"
    if choice == "inception":
        return _inception(device)
    if choice == "own" and (own.exists() or feature_net.can_learn(data)):
        world.broadcast_bytes("features", lambda: _learn(own, data))
        return _own(own, device)
    if choice in ("own", "autoencoder"):
        return _autoencoder(autoencoder, device)
    if Path(choice).is_file():
        return _file(Path(choice), device)
    raise UserError(f"--features {choice}: there is no such file; it can be {CHOICES}")


def _learn(path: Path, data: Any) -> bytes:
    """Train the small network where its file is not there yet."""
    if not path.exists():
        picture = data.item(0, 0)["image"]
        feature_net.save(feature_net.train(data, 32 if max(picture.shape[:2]) <= 48 else 64), path)
    return b"done"


def _own(path: Path, device: torch.device) -> Extractor:
    net = feature_net.load(path).to(device)
    learned = f"{net.labels} labels, {len(net.words)} words of captions"
    about = {"name": "own network", "learned": learned, "weights": _digest(path), "dim": 128}

    resized = {"resize": f"antialiased bilinear to {net.size}"}
    return Extractor(about | resized, lambda x: net.seen(resize(x, net.size)))


def _autoencoder(autoencoder: Autoencoder | None, device: torch.device) -> Extractor:
    """The encoder's last features in quarters; the pixels at 8 x 8 where there is no encoder."""
    if autoencoder is None or not autoencoder.config.channel_mult:
        about = {"name": "pixels", "resize": "antialiased bilinear to 8", "dim": 192}
        return Extractor(about, lambda x: (resize(x, 8).flatten(1), None))
    about = {"name": "the frozen autoencoder's encoder", "weights": autoencoder.weights_hash()[:16], "resize": "none"}
    encoder = autoencoder.encoder.to(device)
    return Extractor(about, lambda x: (resize(encoder.features(x), 2).flatten(1), None))


def _file(path: Path, device: torch.device) -> Extractor:
    """The network is told by the names of its weights."""
    if path.suffix == ".safetensors" and "latentdiff.judge" in checkpoint.read_metadata(path):
        return _own(path, device)
    weights = pretrained.read_state_dict(path)
    about = {"weights": f"{path.name} {_digest(path)}", "resize": "antialiased bilinear to 224"}
    if "features.12.expand3x3.weight" in weights:
        net = _loaded("squeezenet1_1", weights, path, device)
        mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (MEAN, STD))

        def network(x: Tensor) -> tuple[Tensor, Tensor | None]:
            h = net.features((resize(x, 224) / 2 + 0.5 - mean) / std)
            return h.mean((2, 3)), net.classifier(h).flatten(1)

        return Extractor({"name": "SqueezeNet 1.1", "dim": 512} | about, network)
    if "features.18.0.weight" in weights and weights["features.18.0.weight"].shape[0] == 1280:
        net = _tensorflow_padding(_loaded("mobilenet_v2", weights, path, device))

        def network(x: Tensor) -> tuple[Tensor, Tensor | None]:
            h = net.features(resize(x, 224)).mean((2, 3))
            return h, net.classifier(h)

        return Extractor({"name": "MobileNetV2, TensorFlow padding", "dim": 1280} | about, network)
    raise UserError(f"--features {path}: its weights are of no network that is known; it can be {CHOICES}")


def _loaded(name: str, weights: dict[str, Tensor], path: Path, device: torch.device) -> nn.Module:
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None)
    try:
        net.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"--features {path}: its weights do not fit {name}: {error}") from error
    return net.float().eval().requires_grad_(False).to(device)


def _tensorflow_padding(net: nn.Module) -> nn.Module:
    """Stride-2 convolutions look to the right and bottom, as where the weights were trained."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))
    return net


def _inception_file() -> Path | None:
    folders = (pretrained.weights_dir(), Path(torch.hub.get_dir()) / "checkpoints")
    return next((f / INCEPTION[0] for f in folders if (f / INCEPTION[0]).is_file()), None)


def _inception(device: torch.device) -> Extractor:
    """The standard of FID: torch-fidelity's port of the network of 2015, at 299 with TensorFlow's resize."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("--features inception needs torch-fidelity: pip install 'latentdiff[metrics]'") from error
    path = _inception_file()
    if path and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(INCEPTION[1]):
        raise UserError(f"{path} is not the Inception of torch-fidelity (its hash differs); delete it")
    names = ["2048", "logits_unbiased"]
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", names, str(path) if path else None, verbose=False)
    except OSError as error:  # no network: URLError is one
        raise UserError(f"the weights of Inception cannot be downloaded ({error}); put {INCEPTION[0]} into "
                        f"{pretrained.weights_dir()}/ (LATENTDIFF_WEIGHTS), or use --features own") from error  # fmt: skip
    net = net.to(device)
    about = {"name": "Inception v3 (2015-12-05, torch-fidelity)", "weights": INCEPTION[1], "dim": 2048}
    resized = {"resize": "TensorFlow 1 bilinear to 299"}
    return Extractor(about | resized, lambda x: net(((x + 1) * 127.5).round().to(torch.uint8)))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
