import pytest
import torch

from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, KLConfig, VQConfig
from latentdiff.config import UserError

TINY = {"channels": 8, "num_res_blocks": 1, "norm_groups": 4, "z_channels": 4}
PIXELS = AutoencoderConfig(channel_mult=(), z_channels=3, bottleneck=IdentityConfig())
BOTTLENECKS = pytest.mark.parametrize("bottleneck", [KLConfig(), VQConfig(codebook_size=16), IdentityConfig()])
PUBLISHED = {  # parameters; multipliers, attention levels, z_channels, codebook size (0: KL), middle attention
    "kl-f4": (55_312_063, (1, 2, 4), (), 3, 0, True),
    "kl-f8": (83_653_863, (1, 2, 4, 4), (), 4, 0, True),
    "kl-f16": (69_610_963, (1, 1, 2, 2, 4), (4,), 16, 0, True),
    "kl-f32": (103_880_131, (1, 1, 2, 2, 4, 4), (4, 5), 64, 0, True),
    "vq-f4": (55_322_782, (1, 2, 4), (), 3, 8192, True),
    "vq-f4-noattn": (53_219_486, (1, 2, 4), (), 3, 8192, False),
    "vq-f8": (67_717_295, (1, 2, 2, 4), (3,), 4, 16384, True),
    "vq-f8-n256": (67_652_783, (1, 2, 2, 4), (3,), 4, 256, True),
    "vq-f16": (69_593_371, (1, 1, 2, 2, 4), (4,), 8, 16384, True),
}


def tiny(seed: int = 0, **changes) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder(AutoencoderConfig(**{**TINY, "channel_mult": (1, 2), **changes}))


def images(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_parameter_counts_hold(name):
    count, mults, levels, z_channels, codes, middle = PUBLISHED[name]
    bottleneck = VQConfig(codebook_size=codes) if codes else KLConfig()
    config = AutoencoderConfig(
        channel_mult=mults, attention_levels=levels, mid_attention=middle, z_channels=z_channels, bottleneck=bottleneck
    )
    with torch.device("meta"):
        model = Autoencoder(config)
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.factor == int(name.split("-")[1][1:])


@pytest.mark.parametrize("mults", [(1,), (1, 1), (1, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1)])
def test_every_factor_from_1_to_32_takes_any_multiple_of_itself(mults):
    model, factor = tiny(channel_mult=mults), 2 ** (len(mults) - 1)
    x = images(1, 3, factor, 3 * factor)
    z = model.encode(x)
    assert model.factor == factor and z.shape == (1, 4, 1, 3)
    assert model.decode(z).shape == x.shape


def test_a_side_that_is_not_a_multiple_of_the_factor_is_refused_by_name():
    with pytest.raises(UserError, match="14x16.*multiples of 4"):
        tiny(channel_mult=(1, 1, 1)).encode(images(1, 3, 16, 14))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"norm_groups": 5}, "norm_groups is 5.*one is 8"),
        ({"attention_levels": (2,)}, r"attention_levels has 2.*\[0, 1\]"),
        ({"channel_mult": ()}, "pixel space needs z_channels=3 and bottleneck=Identity"),
    ],
)
def test_a_config_that_cannot_be_built_is_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        tiny(**changes)


def test_pixel_space_is_the_identity():
    model, x = Autoencoder(PIXELS), images(2, 3, 5, 7)
    assert model.factor == 1 and not list(model.parameters())
    assert torch.equal(model.encode(x), x) and torch.equal(model.decode(x), x)


@BOTTLENECKS
@torch.no_grad()
def test_z_is_normalized_by_the_latent_stats_and_decode_undoes_it(bottleneck):
    model, x = tiny(bottleneck=bottleneck), images(2, 3, 8, 8)
    raw, y = model.encode(x), model.decode(model.encode(x))
    shift = torch.tensor([0.5, -1.0, 0.0, 2.0])
    for value in (shift, 0.25):
        model.set_latent_stats(value, 3.0)
        z = model.encode(x)
        torch.testing.assert_close(z, (raw - torch.as_tensor(value).reshape(-1, 1, 1)) * 3)
        torch.testing.assert_close(model.decode(z), y, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model.decode(raw), y, atol=1e-3) or isinstance(bottleneck, VQConfig)


@torch.no_grad()
def test_encode_with_noise_is_a_posterior_sample_and_without_it_the_mean():
    model, x = tiny(), images(2, 3, 8, 8)
    mean, logvar = model.moments(x)
    noise = torch.randn(mean.shape)
    assert torch.equal(model.encode(x), mean)
    torch.testing.assert_close(model.encode(x, noise), mean + torch.exp(0.5 * logvar) * noise)
    assert torch.equal(model.normalize(mean, logvar, noise), model.encode(x, noise))


@pytest.mark.parametrize("bottleneck", [VQConfig(codebook_size=16), IdentityConfig()])
@torch.no_grad()
def test_without_a_posterior_there_is_no_variance_and_noise_is_ignored(bottleneck):
    model, x = tiny(bottleneck=bottleneck), images(1, 3, 8, 8)
    assert model.moments(x)[1] is None
    assert torch.equal(model.encode(x, torch.randn(1, 4, 4, 4)), model.encode(x))


def test_decoding_with_a_codebook_replaces_z_by_codes_and_keeps_a_gradient_in_eval():
    model = tiny(bottleneck=VQConfig(codebook_size=4)).eval()
    z = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2)).requires_grad_()
    quantized = model.quantize.look_up(model.quantize.code_indices(z))
    torch.testing.assert_close(model.decode(z), model.decode(quantized), rtol=1e-4, atol=1e-5)
    assert (quantized - z).abs().min() > 0 and not torch.allclose(model.decode(z), model.decode(-z), atol=1e-2)
    model.decode(z).sum().backward()
    assert z.grad.abs().min() > 0


@BOTTLENECKS
def test_every_parameter_gets_a_gradient(bottleneck):
    model, x = tiny(bottleneck=bottleneck, attention_levels=(1,)), images(2, 3, 8, 8)
    output = model(x, torch.randn(2, 4, 4, 4))
    (output.y.square().mean() + model.quantize.loss(output.bottleneck)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert all(name.endswith(".k.bias") for name in without)  # softmax is invariant to a bias of all keys
    assert torch.equal(model.last_layer(output.h), output.y)


def test_under_autocast_moments_and_images_are_float32():
    model, x = tiny(bottleneck=VQConfig(codebook_size=16)), images(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(x)
        assert model.moments(x)[0].dtype == output.y.dtype == output.bottleneck["commitment"].dtype == torch.float32
    assert model.double().decode(torch.randn(1, 4, 4, 4, dtype=torch.float64)).dtype == torch.float64


def test_the_hash_depends_on_the_weights_and_not_on_the_latent_stats():
    model, other = tiny(), tiny()
    model.set_latent_stats(1.0, 2.0)
    assert model.weights_hash() == other.weights_hash()
    with torch.no_grad():
        other.last_layer.bias[0] += 1e-6
    assert model.weights_hash() != other.weights_hash() != tiny(seed=1).weights_hash()
