"""Feature extractors: pretrained networks, a small classifier trained on the dataset, or the autoencoder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_tensors
from PIL import Image

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig
from latentdiff.config import UserError
from latentdiff.data.shapes.dataset import ShapesConfig, ShapesDataset
from latentdiff.evaluation import feature_net, features, image_sets
from latentdiff.training.checkpoint import write_tensors
from latentdiff.training.distributed import World

WEIGHTS = Path(os.environ.get("LATENTDIFF_DATA", "data")) / "weights"
SINGLE_PROCESS = World(0, 1, torch.device("cpu"))
PIXELS = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())


@pytest.fixture
def shapes() -> ShapesDataset:
    return ShapesDataset(ShapesConfig(count=64, val_count=16))


@pytest.fixture
def few_steps(monkeypatch):
    cfg = feature_net.TrainConfig(steps=3, batch_size=8, lr=2e-3, device="cpu")
    monkeypatch.setattr(feature_net, "TRAIN_CONFIG", cfg)


class ImagesOnly:
    """A dataset without labels and captions."""

    def __init__(self, data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def id(self, i: int) -> str:
        return self.data.id(i)

    def record(self, i: int, key: int) -> dict:
        return {"id": self.id(i)}

    def item(self, i: int, key: int) -> dict:
        return {"image": self.data.item(i, key)["image"]}


@pytest.mark.skipif(not (WEIGHTS / "reference").is_dir(), reason="no weights (LATENTDIFF_DATA)")
@pytest.mark.parametrize("file, name", [("squeezenet1_1-imagenet", "squeezenet_gap512"),
                                        ("mobilenet_v2-imagenet-dequant", "mobilenet_gap1280")])  # fmt: skip
def test_pretrained_networks_reproduce_reference_features(file, name):
    (known,) = json.loads((WEIGHTS / "reference" / "values.json").read_text())["features"].values()
    image = Image.open(WEIGHTS / "reference" / "chelsea.png").convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((224, 224), Image.Resampling.BICUBIC)
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 127.5 - 1
    extractor = features.build(str(WEIGHTS / f"{file}.safetensors"), None, None, Path("."), SINGLE_PROCESS)
    h, logits = extractor.network(x)
    assert h[0, :5].tolist() == pytest.approx(known[f"{name}_first5"], abs=2e-3)
    assert h.norm().item() == pytest.approx(known[f"{name}_norm"], rel=1e-3)
    assert logits.shape == (1, 1000) and extractor.metadata["dim"] == h.shape[1]


def test_training_the_classifier_is_deterministic_and_uses_labels_and_informative_words(shapes, few_steps, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = feature_net.train(shapes, 32), feature_net.train(shapes, 32)
    assert torch.equal(torch.get_rng_state(), state)  # the global random state is unchanged
    assert_same_tensors(first.state_dict(), second.state_dict())
    assert first.num_labels == 6 and {"red", "circle", "above"} <= set(first.vocabulary) and "a" not in first.vocabulary
    feature_net.save(first, tmp_path / "features.safetensors")
    loaded = feature_net.load(tmp_path / "features.safetensors")
    assert_same_tensors(first.state_dict(), loaded.state_dict())
    assert loaded.vocabulary == first.vocabulary


def test_features_of_the_classifier_have_mean_zero_and_standard_deviation_one(shapes, few_steps, tmp_path):
    extractor = features.build("classifier", shapes, None, tmp_path, SINGLE_PROCESS)
    h, logits = image_sets.extract(extractor, shapes, 64, SINGLE_PROCESS)
    assert h.shape == (64, 128) and logits.shape == (64, 6)
    assert h.mean(0).abs().max() < 1e-3
    varying = h.std(0) > 0.5
    assert varying.double().mean() > 0.5 and (h.std(0)[varying] - 1).abs().max() < 1e-3


def test_the_classifier_is_trained_once_and_its_file_can_be_used_for_another_run(shapes, few_steps, tmp_path):
    (tmp_path / "a").mkdir()
    first = features.build("classifier", shapes, None, tmp_path / "a", SINGLE_PROCESS)
    path = tmp_path / "a" / "features.safetensors"
    mtime = path.stat().st_mtime_ns
    assert features.build("classifier", shapes, None, tmp_path / "a", SINGLE_PROCESS).metadata == first.metadata
    assert path.stat().st_mtime_ns == mtime
    assert features.build(str(path), shapes, None, tmp_path, SINGLE_PROCESS).metadata == first.metadata


def test_datasets_without_labels_and_captions_are_compared_by_the_autoencoder_or_as_pixels(shapes, tmp_path):
    images = ImagesOnly(shapes)
    small = AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    torch.manual_seed(0)
    for autoencoder, name in ((Autoencoder(small), "encoder"), (Autoencoder(PIXELS), "pixels"), (None, "pixels")):
        extractor = features.build("classifier", images, autoencoder, tmp_path, SINGLE_PROCESS)
        assert name in extractor.metadata["name"]
        assert image_sets.extract(extractor, images, 8, SINGLE_PROCESS).logits is None
    assert not (tmp_path / "features.safetensors").exists()


def test_files_of_unsupported_networks_are_rejected(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="not of a supported network"):
        features.build(str(tmp_path / "x.safetensors"), None, None, tmp_path, SINGLE_PROCESS)
    write_tensors(tmp_path / "y.safetensors", {"weight": torch.zeros(1)}, {"latentdiff.feature_net": "{}"})
    with pytest.raises(UserError, match="not a feature network"):
        features.build(str(tmp_path / "y.safetensors"), None, None, tmp_path, SINGLE_PROCESS)
    with pytest.raises(UserError, match="no such file"):
        features.build("vgg", None, None, tmp_path, SINGLE_PROCESS)
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("LATENTDIFF_WEIGHTS", str(tmp_path))
    (tmp_path / features.INCEPTION_FILE).write_bytes(b"not the network")
    with pytest.raises(UserError, match="its hash differs"):
        features.build("auto", None, None, tmp_path, SINGLE_PROCESS)


def test_images_are_rounded_to_8_bits_before_the_network(shapes):
    extractor = features.Extractor({}, lambda x: (x.flatten(1), None))
    original = image_sets.extract(extractor, shapes, 4, SINGLE_PROCESS).features
    shifted = image_sets.extract(extractor, shapes, 4, SINGLE_PROCESS, lambda x: x + 0.003).features
    assert torch.equal(original.clamp(max=1), shifted)
