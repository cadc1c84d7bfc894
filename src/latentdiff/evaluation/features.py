"""Feature extractors: the networks whose features FID, KID, precision, recall and nearest neighbors compare."""

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

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"  # as downloaded by torch-fidelity
INCEPTION_SHA256 = "6726825d"  # its first digits
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]
CHOICES = "auto, inception, classifier, autoencoder, or a file (SqueezeNet 1.1, MobileNetV2, features.safetensors)"

Outputs = tuple[Tensor, Tensor | None]  # features [B, D], logits [B, K] if the network is a classifier


class Extractor(NamedTuple):
    """Images [B, 3, H, W] in [-1, 1] -> features and logits."""

    metadata: dict[str, Any]  # name, weights, input size and dimension; stored with the metrics
    network: Callable[[Tensor], Outputs]


def build(choice: str, data: Any, autoencoder: Autoencoder | None, folder: Path, world: World) -> Extractor:
    """The feature extractor of --features.

    Args:
        choice: auto (inception if its weights are on this machine, else classifier), inception, classifier,
            autoencoder, or a weights file.
        data: the dataset that the classifier is trained on, if it has labels or captions.
        autoencoder: its encoder is used instead for data without either; None or pixel space: the pixels.
        folder: where the classifier is saved, as features.safetensors.
    """
    classifier_file, device = folder / "features.safetensors", world.device
    if choice == "auto":
        choice = "inception" if _inception_path() else "classifier"
    if choice == "inception":
        return _inception(device)
    if choice == "classifier" and (classifier_file.exists() or feature_net.has_targets(data)):
        world.broadcast_bytes("features", lambda: _train_feature_net(classifier_file, data))
        return _feature_net(classifier_file, device)
    if choice in ("classifier", "autoencoder"):
        return _encoder(autoencoder, device)
    if Path(choice).is_file():
        return _from_file(Path(choice), device)
    raise UserError(f"--features {choice}: there is no such file; it must be {CHOICES}")


def _train_feature_net(path: Path, data: Any) -> bytes:
    """Train the classifier unless its file exists."""
    if not path.exists():
        image = data.item(0, 0)["image"]
        feature_net.save(feature_net.train(data, 32 if max(image.shape[:2]) <= 48 else 64), path)
    return b"done"


def _feature_net(path: Path, device: torch.device) -> Extractor:
    net = feature_net.load(path).to(device)
    targets = f"{net.num_labels} labels, {len(net.vocabulary)} caption words"
    metadata = {"name": "small classifier", "targets": targets, "weights": _digest(path), "dim": 128,
                "resize": f"antialiased bilinear to {net.size}"}  # fmt: skip
    return Extractor(metadata, lambda x: net(resize(x, net.size)))


def _encoder(autoencoder: Autoencoder | None, device: torch.device) -> Extractor:
    """The last features of the encoder, averaged to 2 x 2; the image at 8 x 8 pixels if there is no encoder."""
    if autoencoder is None or not autoencoder.config.channel_mult:
        metadata = {"name": "pixels", "resize": "antialiased bilinear to 8", "dim": 192}
        return Extractor(metadata, lambda x: (resize(x, 8).flatten(1), None))  # [B, 192]
    weights = autoencoder.weights_hash()[:16]
    metadata = {"name": "the frozen autoencoder's encoder", "weights": weights, "resize": "none"}
    encoder = autoencoder.encoder.to(device)
    return Extractor(metadata, lambda x: (resize(encoder.features(x), 2).flatten(1), None))  # [B, 4·C]


def _from_file(path: Path, device: torch.device) -> Extractor:
    """A weights file; the architecture is recognized by the names of the weights."""
    if path.suffix == ".safetensors" and feature_net.METADATA_KEY in checkpoint.read_metadata(path):
        return _feature_net(path, device)
    weights = pretrained.read_state_dict(path)
    source = {"weights": f"{path.name} {_digest(path)}", "resize": "antialiased bilinear to 224"}
    if "features.12.expand3x3.weight" in weights:
        net = _load_torchvision("squeezenet1_1", weights, path, device)
        return Extractor({"name": "SqueezeNet 1.1", "dim": 512} | source, _squeezenet_network(net, device))
    if "features.18.0.weight" in weights and weights["features.18.0.weight"].shape[0] == 1280:
        net = _use_tensorflow_padding(_load_torchvision("mobilenet_v2", weights, path, device))
        metadata = {"name": "MobileNetV2, TensorFlow padding", "dim": 1280} | source
        return Extractor(metadata, _mobilenet_network(net))
    raise UserError(f"--features {path}: its weights are not of a supported network; it must be {CHOICES}")


def _squeezenet_network(net: nn.Module, device: torch.device) -> Callable[[Tensor], Outputs]:
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def network(x: Tensor) -> Outputs:
        h = net.features((resize(x, 224) / 2 + 0.5 - mean) / std)  # [B, 512, 13, 13]
        return h.mean((2, 3)), net.classifier(h).flatten(1)  # [B, 512], [B, 1000]

    return network


def _mobilenet_network(net: nn.Module) -> Callable[[Tensor], Outputs]:
    def network(x: Tensor) -> Outputs:
        h = net.features(resize(x, 224)).mean((2, 3))  # [B, 1280]
        return h, net.classifier(h)

    return network


def _load_torchvision(name: str, weights: dict[str, Tensor], path: Path, device: torch.device) -> nn.Module:
    import torchvision

    with torch.device("meta"):
        net = getattr(torchvision.models, name)(weights=None)
    try:
        net.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise UserError(f"--features {path}: its weights do not fit torchvision's {name}: {error}") from error
    return net.float().eval().requires_grad_(False).to(device)


def _use_tensorflow_padding(net: nn.Module) -> nn.Module:
    """Pad the input of stride-2 convolutions at the right and bottom only, as TensorFlow did in training."""
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.Conv2d) and child.stride == (2, 2):
                child.padding = (0, 0)
                setattr(module, name, nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), child))
    return net


def _inception_path() -> Path | None:
    folders = (pretrained.weights_dir(), Path(torch.hub.get_dir()) / "checkpoints")
    return next((folder / INCEPTION_FILE for folder in folders if (folder / INCEPTION_FILE).is_file()), None)


def _inception(device: torch.device) -> Extractor:
    """The standard network of FID: torch-fidelity's port of Inception v3 of 2015, with TensorFlow's resize to 299."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError("--features inception needs torch-fidelity: pip install 'latentdiff[metrics]'") from error
    path = _inception_path()
    if path and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(INCEPTION_SHA256):
        raise UserError(f"{path} is not the Inception network of torch-fidelity (its hash differs); delete it")
    outputs = ["2048", "logits_unbiased"]
    try:
        net = FeatureExtractorInceptionV3("inception-v3-compat", outputs, str(path) if path else None, verbose=False)
    except OSError as error:  # no network: a URLError is an OSError
        raise UserError(
            f"the weights of Inception cannot be downloaded ({error}); put {INCEPTION_FILE} into "
            f"{pretrained.weights_dir()}/ (set LATENTDIFF_WEIGHTS for another folder), or use --features classifier"
        ) from error
    net = net.to(device)
    metadata = {"name": "Inception v3 (2015-12-05, torch-fidelity)", "weights": INCEPTION_SHA256, "dim": 2048,
                "resize": "TensorFlow 1 bilinear to 299"}  # fmt: skip
    return Extractor(metadata, lambda x: net(((x + 1) * 127.5).round().to(torch.uint8)))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
