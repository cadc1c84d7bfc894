"""LPIPS, the discriminator and stage one's loss give the original release's numbers (tests/fixtures/vectors)."""

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
    """The values that are not the original's, and how far off they are."""
    return {k: vectors.error(v, expected[k]) for k, v in actual.items() if not vectors.close(v, expected[k])}


@DTYPES
@torch.no_grad()
def test_lpips_equals_the_original_level_by_level(dtype):
    _, tensors = vectors.case("lpips")
    given, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    distance = lpips("lpips", "", dtype)
    actual = {"val": distance(given["a"], given["b"]), "val_swapped": distance(given["b"], given["a"])}
    actual |= {f"level{i}": level for i, level in enumerate(distance.levels(given["a"], given["b"]))}
    maps = distance.maps(given["a"])
    actual |= {f"feat{i}_mean_abs": f.abs().mean((2, 3))[:, :16] for i, f in enumerate(maps)}
    assert not differences(actual, expected)
    distance.shift.neg_()
    assert vectors.error(distance(given["a"], given["b"]), expected["val"]) > 0.01  # a shift of the wrong sign


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
    given, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    actual = {"hinge": hinge(given["r"], given["f"]), "vanilla": vanilla(given["r"], given["f"])}
    assert not differences(actual, expected)
    assert not vectors.close(hinge(given["f"], given["r"]), expected["hinge"])


def both_players(dtype: torch.dtype, weighs: bool, reduction: str = "sum", norm_in_eval: bool = False) -> dict:
    """One step of each player as the case ran it; `weighs`: from disc_start on. Names are the case's."""
    meta, tensors = vectors.case("gan_losses_kl")
    given, arguments = vectors.inputs(tensors, dtype), meta["config"]
    # the case's output log-variance, a constant in the released models, divides the reconstruction loss
    logvar = generated("gan_losses_kl")["logvar"].to(dtype).item()
    perceptual = LPIPSConfig(weight=arguments["perceptual_weight"] / math.exp(logvar))
    config = LossConfig(l1=1 / math.exp(logvar), perceptual=perceptual)
    critic = discriminator(2, dtype, channels=64, scope="discriminator.").train(not norm_in_eval)
    last = nn.Conv2d(4, 3, 3, padding=1, bias=False, dtype=dtype)
    last.weight.data = given["last_layer"]
    x, gaussian = given["x"], Gaussian(KLConfig(weight=arguments["kl_weight"]), 3)

    _, kl_terms = gaussian(*gaussian.split(given["moments"].requires_grad_()), None)
    output = Reconstruction(last(given["feat"]), given["feat"], kl_terms)
    y = output.y.detach().requires_grad_()
    distance = lpips("gan_losses_kl", "perceptual_loss.", dtype)
    terms = reconstruction_loss(config, x, y, distance, reduction)
    g = generator_loss(critic(y))
    a, b = (torch.autograd.grad(loss, y, retain_graph=True)[0] for loss in (terms["nll"], g))
    adaptive = arguments["disc_weight"] * adaptive_weight(a, b, output.h, last)
    bottleneck = gaussian.loss(kl_terms)
    backward(output, bottleneck, y, terms["nll"], g if weighs else None, arguments["disc_weight"], last)
    nll = terms["nll"] + logvar * x[0].numel()

    critic = discriminator(2, dtype, channels=64, scope="discriminator.")
    real, fake = critic(x), critic(y.detach())
    d_loss = weighs * hinge(real, fake)
    d_loss.backward()
    return {
        "aeloss": nll + bottleneck + weighs * adaptive * g,
        "grad_last_layer": last.weight.grad,
        "kl_loss": kl_terms["kl"].mean(),
        "nll_loss": nll,
        "rec_loss": terms["l1"] + arguments["perceptual_weight"] * terms["perceptual"],
        "d_weight": adaptive,
        "g_loss": g,
        "discloss": d_loss,
        "grad_disc_last_bias": critic.main[-1].bias.grad,
        "logits_real": real.mean(),
        "logits_fake": fake.mean(),
    }


@DTYPES
@pytest.mark.parametrize("step", [99, 100])
def test_both_players_losses_and_gradients_equal_the_original(step, dtype):
    expected = vectors.outputs(vectors.case("gan_losses_kl")[1], dtype)
    actual = {f"step{step}.{key}": value for key, value in both_players(dtype, weighs=step >= 100).items()}
    assert not differences(actual, expected)


def test_a_mean_or_a_frozen_norm_would_show_in_the_loss():
    expected = vectors.outputs(vectors.case("gan_losses_kl")[1], torch.float64)
    mean = both_players(torch.float64, weighs=True, reduction="mean")
    assert vectors.error(mean["grad_last_layer"], expected["step100.grad_last_layer"]) > 0.5
    frozen = both_players(torch.float64, weighs=True, norm_in_eval=True)
    assert vectors.error(frozen["d_weight"], expected["step100.d_weight"]) > 0.5
