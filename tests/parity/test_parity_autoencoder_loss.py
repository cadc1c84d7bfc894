"""LPIPS, discriminator and loss of stage one reproduce the original release (tests/fixtures/vectors)."""

import functools
import math

import pytest
import torch
import vectors
from torch import Tensor, nn

from latentdiff.autoencoder.autoencoder import Reconstruction
from latentdiff.autoencoder.bottleneck import Gaussian, KLConfig
from latentdiff.autoencoder.discriminator import Discriminator, DiscriminatorConfig, generator_loss, hinge, vanilla
from latentdiff.autoencoder.loss import LossConfig, adaptive_weight, backward, reconstruction_loss
from latentdiff.autoencoder.perceptual import LPIPSConfig, LPIPSDistance

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


@functools.cache
def generated(name: str) -> dict[str, Tensor]:
    return vectors.weights(vectors.case(name)[0])


def lpips(name: str, scope: str, dtype: torch.dtype) -> LPIPSDistance:
    pytest.importorskip("torchvision")
    weights = {k.removeprefix(scope): v for k, v in generated(name).items() if k.startswith(scope)}
    features = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith("net.")}
    heads = [weights[f"lin{i}.model.1.weight"] for i in range(5)]
    return LPIPSDistance("vgg16", features, heads).to(dtype)


def differences(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The values that differ from the original's, and their errors."""
    return {k: vectors.error(v, expected[k]) for k, v in actual.items() if not vectors.close(v, expected[k])}


@DTYPES
@torch.no_grad()
def test_lpips_equals_the_original_in_every_layer(dtype):
    _, tensors = vectors.case("lpips")
    inputs, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    distance = lpips("lpips", "", dtype)
    actual = {"val": distance(inputs["a"], inputs["b"]), "val_swapped": distance(inputs["b"], inputs["a"])}
    actual |= {f"level{i}": level for i, level in enumerate(distance.layer_distances(inputs["a"], inputs["b"]))}
    maps = distance.feature_maps(inputs["a"])
    actual |= {f"feat{i}_mean_abs": f.abs().mean((2, 3))[:, :16] for i, f in enumerate(maps)}
    assert not differences(actual, expected)
    distance.shift.neg_()
    assert vectors.error(distance(inputs["a"], inputs["b"]), expected["val"]) > 0.01  # wrong sign of the shift


def discriminator(layers: int, dtype: torch.dtype, channels: int = 16, scope: str = "") -> Discriminator:
    model = Discriminator(DiscriminatorConfig(channels=channels, layers=layers, norm="batch"))
    for key, parameter in model.named_parameters():
        parameter.data = torch.from_numpy(vectors.noise_of(scope + key, parameter.shape))
    return model.to(dtype)


@DTYPES
@torch.no_grad()
def test_the_discriminator_equals_the_original_in_training_and_in_evaluation(dtype):
    meta, tensors = vectors.case("disc")
    x, expected = vectors.inputs(tensors, dtype)["x"], vectors.outputs(tensors, dtype)
    model = discriminator(3, dtype)
    shapes = {key: list(value.shape) for key, value in model.named_parameters()}
    assert shapes == meta["init"]["keys"]
    actual = {"logits_train": model(x)}
    actual |= {f"after.{k}": v for k, v in model.named_buffers() if k.endswith(("mean", "var"))}
    actual |= {"logits_eval_after_one_train_pass": model.eval()(x)}
    actual |= {f"logits_train_nlayers{n}": discriminator(n, dtype)(x) for n in (1, 2)}
    assert not differences(actual, expected)
    group = Discriminator(DiscriminatorConfig(channels=16, norm="group")).to(dtype)
    group.load_state_dict(discriminator(3, dtype).state_dict(), strict=False)
    assert vectors.error(group(x), expected["logits_train"]) > 0.01


@DTYPES
def test_hinge_and_vanilla_losses_equal_the_original(dtype):
    _, tensors = vectors.case("gan_scalar")
    inputs, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    actual = {"hinge": hinge(inputs["r"], inputs["f"]), "vanilla": vanilla(inputs["r"], inputs["f"])}
    assert not differences(actual, expected)
    assert not vectors.close(hinge(inputs["f"], inputs["r"]), expected["hinge"])


def training_step(dtype: torch.dtype, adversarial: bool, reduction: str = "sum", norm_in_eval: bool = False) -> dict:
    """One step of autoencoder and discriminator as in the case, with its names; adversarial: from disc_start on."""
    meta, tensors = vectors.case("gan_losses_kl")
    inputs, arguments = vectors.inputs(tensors, dtype), meta["config"]
    # the case's output log-variance, a constant in the released models, divides the reconstruction loss
    logvar = generated("gan_losses_kl")["logvar"].to(dtype).item()
    perceptual = LPIPSConfig(weight=arguments["perceptual_weight"] / math.exp(logvar))
    config = LossConfig(l1=1 / math.exp(logvar), perceptual=perceptual)
    model = discriminator(2, dtype, channels=64, scope="discriminator.").train(not norm_in_eval)
    last = nn.Conv2d(4, 3, 3, padding=1, bias=False, dtype=dtype)
    last.weight.data = inputs["last_layer"]
    x, gaussian = inputs["x"], Gaussian(KLConfig(weight=arguments["kl_weight"]), 3)

    _, kl_terms = gaussian(*gaussian.split(inputs["moments"].requires_grad_()), None)
    output = Reconstruction(last(inputs["feat"]), inputs["feat"], kl_terms)
    y = output.y.detach().requires_grad_()
    distance = lpips("gan_losses_kl", "perceptual_loss.", dtype)
    terms = reconstruction_loss(config, x, y, distance, reduction)
    g = generator_loss(model(y))
    a, b = (torch.autograd.grad(loss, y, retain_graph=True)[0] for loss in (terms["nll"], g))
    adaptive = arguments["disc_weight"] * adaptive_weight(a, b, output.h, last)
    bottleneck = gaussian.loss(kl_terms)
    backward(output, bottleneck, y, terms["nll"], g if adversarial else None, arguments["disc_weight"], last)
    nll = terms["nll"] + logvar * x[0].numel()

    model = discriminator(2, dtype, channels=64, scope="discriminator.")
    real, fake = model(x), model(y.detach())
    d_loss = adversarial * hinge(real, fake)
    d_loss.backward()
    return {
        "aeloss": nll + bottleneck + adversarial * adaptive * g,
        "grad_last_layer": last.weight.grad,
        "kl_loss": kl_terms["kl"].mean(),
        "nll_loss": nll,
        "rec_loss": terms["l1"] + arguments["perceptual_weight"] * terms["perceptual"],
        "d_weight": adaptive,
        "g_loss": g,
        "discloss": d_loss,
        "grad_disc_last_bias": model.main[-1].bias.grad,
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
    }


@DTYPES
@pytest.mark.parametrize("step", [99, 100])
def test_losses_and_gradients_of_both_networks_equal_the_original(step, dtype):
    expected = vectors.outputs(vectors.case("gan_losses_kl")[1], dtype)
    actual = {f"step{step}.{key}": value for key, value in training_step(dtype, adversarial=step >= 100).items()}
    assert not differences(actual, expected)


def test_a_mean_reduction_or_a_norm_in_eval_mode_would_change_the_loss():
    expected = vectors.outputs(vectors.case("gan_losses_kl")[1], torch.float64)
    mean = training_step(torch.float64, adversarial=True, reduction="mean")
    assert vectors.error(mean["grad_last_layer"], expected["step100.grad_last_layer"]) > 0.5
    frozen = training_step(torch.float64, adversarial=True, norm_in_eval=True)
    assert vectors.error(frozen["d_weight"], expected["step100.d_weight"]) > 0.5
