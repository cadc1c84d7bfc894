import json
import os
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latentdiff.autoencoder import pretrained
from latentdiff.autoencoder.perceptual import (
    LPIPS_LAYERS,
    LPIPSConfig,
    LPIPSDistance,
    MultiScaleConfig,
    MultiScaleDistance,
    build,
)
from latentdiff.config import UserError

WEIGHTS = Path(os.environ.get("LATENTDIFF_DATA", "data")) / "weights"
WIDTHS = (64, 128, 256, 384, 384, 512, 512)
real_weights = pytest.mark.skipif(not (WEIGHTS / "reference").is_dir(), reason=f"no weights in {WEIGHTS}")


def random_weights() -> tuple[dict, list]:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    shapes = {k: v.shape for k, v in pretrained.features("squeezenet").state_dict().items()}
    weights = {k: torch.randn(s) / max(1, s[1:].numel()) ** 0.5 for k, s in shapes.items()}
    return weights, [torch.rand(1, c, 1, 1) / c for c in WIDTHS]


def random_lpips() -> LPIPSDistance:
    return LPIPSDistance("squeezenet", *random_weights())


def images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


DISTANCES = pytest.mark.parametrize("make", [random_lpips, lambda: MultiScaleDistance(3)], ids=["lpips", "multiscale"])


@DISTANCES
def test_the_distance_is_zero_for_equal_images_and_grows_with_the_difference(make):
    distance, x = make(), images(2, 3, 32, 32)
    noise = 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    assert distance(x, x).shape == (2, 1, 1, 1) and distance(x, x).abs().max() < 1e-9
    assert (distance(x + noise, x) > 0).all() and (distance(x + noise, x) < distance(x + 5 * noise, x)).all()


@DISTANCES
def test_the_image_gets_a_gradient_and_the_target_gets_none(make):
    x, target = images(1, 3, 32, 32).requires_grad_(), images(1, 3, 32, 32, seed=2).requires_grad_()
    make()(x, target).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().mean() > 1e-7 and target.grad is None


@DISTANCES
def test_a_distance_has_no_parameters_no_state_dict_and_the_same_value_in_train_and_eval(make):
    distance, x, target = make(), images(1, 3, 32, 32), images(1, 3, 32, 32, seed=2)
    assert not list(distance.parameters()) and not distance.state_dict()
    assert torch.equal(distance.train()(x, target), distance.eval()(x, target))


@DISTANCES
def test_half_precision_is_computed_in_float32_and_float64_is_kept(make):
    distance, x, target = make(), images(1, 3, 32, 32), images(1, 3, 32, 32, seed=2)
    full = distance(x, target)
    with torch.autocast("cpu", torch.bfloat16):
        half = distance(x.bfloat16(), target.bfloat16())
    assert half.dtype == torch.float32 and torch.allclose(half, full, rtol=0.05)
    double = distance.double()(x.double(), target.double())
    assert double.dtype == torch.float64 and torch.allclose(double.float(), full, rtol=1e-4)


def test_multiscale_ignores_a_change_of_brightness_and_not_blurred_edges():
    x = images(1, 3, 16, 16)
    blurred = torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
    distance = MultiScaleDistance(3)
    assert distance(x + 0.5, x).item() < 1e-6 < 0.1 < distance(blurred, x).item()


@pytest.fixture(scope="module")
def squeeze() -> LPIPSDistance:
    pytest.importorskip("torchvision")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LATENTDIFF_WEIGHTS", str(WEIGHTS))
        return build(LPIPSConfig(backbone="squeezenet"))


@real_weights
@torch.no_grad()
def test_squeezenet_lpips_equals_the_published_values(squeeze):
    published = json.loads((WEIGHTS / "reference" / "values.json").read_text())["lpips_squeeze"]
    for names, value in published.items():
        if " vs " in names:
            files = [WEIGHTS / "reference" / f"{name}.png" for name in names.split(" vs ")]
            a, b = (torch.from_numpy(np.array(Image.open(f).convert("RGB"))) / 127.5 - 1 for f in files)
            actual = squeeze(a.permute(2, 0, 1)[None], b.permute(2, 0, 1)[None]).flatten().tolist()
            assert actual == pytest.approx([value], abs=2e-5), names
        else:
            generator = torch.Generator().manual_seed(42)
            a, b = (torch.rand(2, 3, 100, 100, generator=generator) * 2 - 1 for _ in range(2))
            assert squeeze(a, b).flatten().tolist() == pytest.approx(value, abs=2e-5)
            squeeze.layers, layers = squeeze.layers[:-1], squeeze.layers
            assert squeeze(a, b).flatten().tolist() != pytest.approx(value, abs=1e-3)  # without the last layer
            squeeze.layers = layers


# ---- where weights come from


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of weights, on a machine without a network."""

    def no_network(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("LATENTDIFF_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", no_network)
    monkeypatch.setattr(pretrained, "_torchvision_weights", no_network)
    monkeypatch.setattr(pretrained, "_in_lpips_package", lambda short: None)
    return tmp_path


@pytest.mark.parametrize("backbone, name", [("vgg16", "vgg16-397923af.pth"), ("squeezenet", "squeezenet1_1")])
def test_without_weights_the_error_names_the_files_and_the_folder(backbone, name, folder):
    with pytest.raises(UserError, match=f"{name}.*{folder}.*LATENTDIFF_WEIGHTS.*perceptual=None"):
        build(LPIPSConfig(backbone=backbone))


def test_weights_are_found_in_the_folder_and_unpublished_heads_are_refused(folder):
    weights, heads = random_weights()
    torch.save({f"features.{k}": v for k, v in weights.items()}, folder / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(UserError, match="lpips_v0.1_squeeze_lin.safetensors or squeeze.pth"):
        build(LPIPSConfig(backbone="squeezenet"))
    other = folder / "lpips_v0.1_squeeze_lin.safetensors"
    save_file({f"lin{i}.model.1.weight": head for i, head in enumerate(heads)}, other)
    with pytest.raises(UserError, match="does not hold the published LPIPS heads"):
        build(LPIPSConfig(backbone="squeezenet"))
    x, target = images(1, 3, 32, 32), images(1, 3, 32, 32, seed=2)
    distance = build(LPIPSConfig(backbone="squeezenet", heads=str(other)))  # a file set by the user is not checked
    assert torch.equal(distance(x, target), LPIPSDistance("squeezenet", weights, heads)(x, target))


def test_the_heads_of_an_installed_package_are_found_without_importing_it(tmp_path, monkeypatch):
    heads = tmp_path / "lpips" / "weights" / "v0.1" / "squeeze.pth"
    heads.parent.mkdir(parents=True)
    heads.touch()
    (tmp_path / "lpips" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    assert pretrained._in_lpips_package("squeeze") == heads


def test_files_without_weights_are_refused_by_name(folder):
    (folder / "broken.safetensors").write_bytes(b"nothing")
    save_file({"features.0.weight": torch.zeros(1)}, folder / "other.safetensors")
    save_file({f"lin{i}.model.1.weight": torch.zeros(1) for i in range(7)}, folder / "heads.safetensors")
    for name, message in {
        "none.pth": "there is no weights file",
        "broken.safetensors": "cannot be read",
        "other.safetensors": "fit",
    }.items():
        files = LPIPSConfig("squeezenet", backbone_weights=str(folder / name), heads=str(folder / "heads.safetensors"))
        with pytest.raises(UserError, match=message):
            build(files)


def test_an_unknown_backbone_is_refused_and_none_builds_none():
    with pytest.raises(UserError, match=f"'alexnet'; it must be one of {', '.join(LPIPS_LAYERS)}"):
        build(LPIPSConfig(backbone="alexnet"))
    assert build(None) is None and isinstance(build(MultiScaleConfig()), MultiScaleDistance)
