"""The autoencoder reproduces the outputs of the original release (tests/fixtures/vectors)."""

import pytest
import torch
import vectors
from torch import nn

from latentdiff.autoencoder import blocks
from latentdiff.autoencoder.autoencoder import Autoencoder, AutoencoderConfig
from latentdiff.autoencoder.bottleneck import Gaussian, KLConfig, kl, sample

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
TINY = AutoencoderConfig(channels=32, channel_mult=(1, 2), z_channels=3, inner_channels=4)
ATTENTION = AutoencoderConfig(  # attn_resolutions [16, 8] of a nominal 32: levels 1 and 2
    channels=32, channel_mult=(1, 1, 2), num_res_blocks=1, attention_levels=(1, 2), z_channels=4
)


def autoencoder(name: str, config: AutoencoderConfig, dtype: torch.dtype) -> Autoencoder:
    """The autoencoder of a case with its generated weights, loaded without renaming."""
    model = Autoencoder(config)
    meta, _ = vectors.case(name)
    missing, unexpected = model.load_state_dict(vectors.weights(meta), strict=False)
    assert set(missing) == {"latent_shift", "latent_scale"} and not unexpected
    return model.to(dtype).eval()


@torch.no_grad()
def run(model: Autoencoder, inputs: dict) -> dict:
    mean, logvar = model.moments(inputs["x"])
    return {
        "encoder_out": model.encoder(inputs["x"]),
        "moments": model.quant_conv(model.encoder(inputs["x"])),
        "mean": mean,
        "logvar": logvar,
        "kl": kl(mean, logvar),
        "sample": model.encode(inputs["x"], inputs["noise"]),
        "rec_mode": model.decode(model.encode(inputs["x"])),
        "rec_sample": model(inputs["x"], inputs["noise"]).y,
    }


@DTYPES
@pytest.mark.parametrize("name, config", [("akl_tiny", TINY), ("akl_attn_tiny", ATTENTION)])
def test_encoder_posterior_and_decoder_equal_the_original(name, config, dtype):
    _, tensors = vectors.case(name)
    inputs, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    for key, value in run(autoencoder(name, config, dtype), inputs).items():
        assert vectors.close(value, expected[key]), f"{key}: {vectors.error(value, expected[key]):.1e}"


def test_encoder_and_decoder_equal_the_original_in_channels_last():
    _, tensors = vectors.case("akl_attn_tiny")
    model = autoencoder("akl_attn_tiny", ATTENTION, torch.float64).to(memory_format=torch.channels_last)
    expected = vectors.outputs(tensors, torch.float64)
    for key, value in run(model, vectors.inputs(tensors, torch.float64)).items():
        assert vectors.close(value, expected[key]), key


@DTYPES
def test_odd_sizes_are_encoded_as_in_the_original(dtype):
    _, tensors = vectors.case("akl_tiny")
    with torch.no_grad():
        actual = autoencoder("akl_tiny", TINY, dtype).encoder(vectors.inputs(tensors, dtype)["x_odd"])
    assert vectors.close(actual, vectors.outputs(tensors, dtype)["encoder_out_odd"])


def pad_both_sides(model: Autoencoder) -> None:
    for level in model.encoder.down:
        if hasattr(level.downsample, "conv"):
            level.downsample = level.downsample.conv
            level.downsample.padding = (1, 1)


def widen_eps(model: Autoencoder) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-5


def drop_middle_attention(model: Autoencoder) -> None:
    model.encoder.mid.attn_1 = nn.Identity()


def drop_level_attention(model: Autoencoder) -> None:
    model.encoder.down[1].attn[0] = nn.Identity()


@pytest.mark.parametrize("change", [pad_both_sides, widen_eps, drop_middle_attention, drop_level_attention])
def test_a_changed_autoencoder_does_not_equal_the_original(change):
    _, tensors = vectors.case("akl_attn_tiny")
    model = autoencoder("akl_attn_tiny", ATTENTION, torch.float64)
    change(model)
    actual = run(model, vectors.inputs(tensors, torch.float64))
    assert not vectors.close(actual["rec_mode"], vectors.outputs(tensors, torch.float64)["rec_mode"])


@DTYPES
def test_the_posterior_equals_the_original_also_where_it_is_clamped(dtype):
    _, tensors = vectors.case("diag_gauss")
    inputs, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    mean, logvar = Gaussian(KLConfig(), 3).split(inputs["params"])
    std = sample(torch.zeros_like(mean), logvar, torch.ones_like(mean))
    actual = {"mean": mean, "logvar": logvar, "std": std, "var": std.square(), "kl": kl(mean, logvar)}
    for key, value in actual.items():  # relative: some entries sit on the clamp and are huge
        torch.testing.assert_close(value, expected[key], rtol=vectors.TOLERANCE[dtype], atol=0, msg=key)
    unclamped = kl(*inputs["params"].chunk(2, dim=1))
    assert not torch.allclose(unclamped, expected["kl"], rtol=0.5)


BLOCKS = {  # name in the case -> the block, its input
    "ae_res": (lambda: blocks.ResBlock(32, 64, 32), "x"),
    "ae_attn": (lambda: blocks.Attention(32, 32), "x"),
    "ae_down": (lambda: blocks.Downsample(32), "x"),
    "ae_down_odd": (lambda: blocks.Downsample(32), "x_odd"),
    "ae_up": (lambda: blocks.Upsample(32), "x"),
    "ae_up_odd": (lambda: blocks.Upsample(32), "x_odd"),
    "gn_ae": (lambda: blocks.norm(32, 32), "x"),
    "ae_res_small": (lambda: blocks.ResBlock(32, 64, 32), "x"),
    "ae_attn_small": (lambda: blocks.Attention(32, 32), "x"),
    "gn_ae_small": (lambda: blocks.norm(32, 32), "x"),
}


@torch.no_grad()
def run_block(key: str, dtype: torch.dtype, eps: float | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of a block and that of the original; for keys *_small the input is multiplied by 1e-3."""
    make, source = BLOCKS[key]
    meta, tensors = vectors.case("blocks")
    scope = key.removesuffix("_small").removesuffix("_odd") + "."
    shapes = {k.removeprefix(scope): v for k, v in meta["init"]["keys"].items() if k.startswith(scope)}
    block = make()
    block.load_state_dict({k: torch.from_numpy(vectors.noise_of(scope + k, v)) for k, v in shapes.items()})
    if eps is not None:
        block.eps = eps
    x = vectors.inputs(tensors, dtype)[source] * (1e-3 if key.endswith("_small") else 1)
    return block.to(dtype)(x), vectors.outputs(tensors, dtype)[key]


@DTYPES
@pytest.mark.parametrize("key", BLOCKS)
def test_each_block_equals_the_original(key, dtype):
    actual, expected = run_block(key, dtype)
    assert vectors.close(actual, expected), f"{vectors.error(actual, expected):.1e}"


def test_the_eps_of_the_unet_would_change_the_norm_of_small_inputs():
    assert vectors.error(*run_block("gn_ae_small", torch.float64, eps=1e-5)) > 0.3
