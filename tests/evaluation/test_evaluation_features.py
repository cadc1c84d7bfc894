"""What pictures are seen with: published networks, a small one that learns the data's words, or the autoencoder."""

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
    monkeypatch.setattr(feature_net, "TRAIN", feature_net.TrainConfig(steps=3, batch_size=8, lr=2e-3, device="cpu"))


class Bare:
    """Pictures of which nothing is said."""

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
def test_networks_from_files_give_their_known_features(file, name):
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


def test_the_small_network_learns_labels_and_telling_words_alike_every_time(shapes, few_steps, tmp_path):
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = feature_net.train(shapes, 32), feature_net.train(shapes, 32)
    assert torch.equal(torch.get_rng_state(), state)  # whoever draws next is not disturbed
    assert_same_tensors(first.state_dict(), second.state_dict())
    assert first.labels == 6 and {"red", "circle", "above"} <= set(first.words) and "a" not in first.words
    feature_net.save(first, tmp_path / "features.safetensors")
    again = feature_net.load(tmp_path / "features.safetensors")
    assert_same_tensors(first.state_dict(), again.state_dict())
    assert again.words == first.words


def test_features_of_the_small_network_have_mean_zero_and_deviation_one(shapes, few_steps, tmp_path):
    extractor = features.build("classifier", shapes, None, tmp_path, SINGLE_PROCESS)
    found = image_sets.extract(extractor, shapes, 64, SINGLE_PROCESS)
    assert found.features.shape == (64, 128) and found.logits.shape == (64, 6)
    assert found.features.mean(0).abs().max() < 1e-3
    live = found.features.std(0) > 0.5
    assert live.double().mean() > 0.5 and (found.features.std(0)[live] - 1).abs().max() < 1e-3


def test_the_small_network_is_kept_and_may_be_lent_to_another_run(shapes, few_steps, tmp_path):
    (tmp_path / "a").mkdir()
    first = features.build("classifier", shapes, None, tmp_path / "a", SINGLE_PROCESS)
    kept = tmp_path / "a" / "features.safetensors"
    old = kept.stat().st_mtime_ns
    assert features.build("classifier", shapes, None, tmp_path / "a", SINGLE_PROCESS).metadata == first.metadata
    assert kept.stat().st_mtime_ns == old
    assert features.build(str(kept), shapes, None, tmp_path, SINGLE_PROCESS).metadata == first.metadata


def test_pictures_without_words_are_seen_by_the_autoencoder_or_as_pixels(shapes, tmp_path):
    bare, small = Bare(shapes), AutoencoderConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4)
    torch.manual_seed(0)
    for autoencoder, name in ((Autoencoder(small), "encoder"), (Autoencoder(PIXELS), "pixels"), (None, "pixels")):
        extractor = features.build("classifier", bare, autoencoder, tmp_path, SINGLE_PROCESS)
        assert name in extractor.metadata["name"]
        assert image_sets.extract(extractor, bare, 8, SINGLE_PROCESS).logits is None
    assert not (tmp_path / "features.safetensors").exists()


def test_files_that_are_no_such_network_are_refused(tmp_path, monkeypatch):
    write_tensors(tmp_path / "x.safetensors", {"weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no network that is known"):
        features.build(str(tmp_path / "x.safetensors"), None, None, tmp_path, SINGLE_PROCESS)
    write_tensors(tmp_path / "y.safetensors", {"weight": torch.zeros(1)}, {"latentdiff.feature_net": "{}"})
    with pytest.raises(UserError, match="does not hold features"):
        features.build(str(tmp_path / "y.safetensors"), None, None, tmp_path, SINGLE_PROCESS)
    with pytest.raises(UserError, match="no such file"):
        features.build("vgg", None, None, tmp_path, SINGLE_PROCESS)
    pytest.importorskip("torch_fidelity")
    monkeypatch.setenv("LATENTDIFF_WEIGHTS", str(tmp_path))
    (tmp_path / features.INCEPTION[0]).write_bytes(b"not it")
    with pytest.raises(UserError, match="its hash differs"):
        features.build("auto", None, None, tmp_path, SINGLE_PROCESS)


def test_drawn_pictures_are_seen_at_256_levels_like_stored_ones(shapes):
    extractor = features.Extractor({}, lambda x: (x.flatten(1), None))
    plain = image_sets.extract(extractor, shapes, 4, SINGLE_PROCESS).features
    nearly = image_sets.extract(extractor, shapes, 4, SINGLE_PROCESS, lambda x: x + 0.003).features
    assert torch.equal(plain.clamp(max=1), nearly)
