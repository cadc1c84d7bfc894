"""The U-Net and its blocks, loaded through the key map, equal the original release."""

from dataclasses import replace

import pytest
import torch
import vectors
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.convert import key_map
from latentdiff.convert.compvis import key_maps
from latentdiff.diffusion import blocks
from latentdiff.diffusion.unet import UNet, UNetConfig
from latentdiff.layers import Attention, timestep_embedding

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
UNCOND = UNetConfig(channels=32, channel_mult=(1, 2, 3), attention_levels=(1, 2), head_channels=32)
XATTN = UNetConfig(
    channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(0, 1), head_channels=16, transformer_depth=2
)
CASES = {"unet_uncond_headch": (UNCOND, None), "unet_xattn_headch": (XATTN, 24)}


def unet(name: str, dtype: torch.dtype, **changes) -> UNet:
    """The U-Net of a case, with the weights of the case."""
    config, context_dim = CASES[name]
    model = UNet(replace(config, **changes), 3, 3, context_dim)
    keys, shapes = key_maps.unet_key_map(model), key_map.shapes_of(model)
    model.load_state_dict(key_map.to_dst(vectors.weights(vectors.case(name)[0]), keys, shapes)[0])
    return model.to(dtype).eval()


def run(model: UNet, name: str, dtype: torch.dtype) -> Tensor:
    inputs = vectors.inputs(vectors.case(name)[1], dtype)
    return model(inputs["x"], inputs["t"], Cond(context=inputs.get("context")))


def expected(name: str, dtype: torch.dtype) -> Tensor:
    return vectors.outputs(vectors.case(name)[1], dtype)["out"]


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_the_unet_equals_the_original(name: str, dtype: torch.dtype) -> None:
    assert vectors.close(run(unet(name, dtype), name, dtype), expected(name, dtype))


@pytest.mark.parametrize("option", ["gradient_checkpointing", "channels_last"])
def test_the_unet_equals_the_original_with_options_that_save_memory_or_time(option: str) -> None:
    name, output = "unet_xattn_headch", expected("unet_xattn_headch", torch.float64)
    checkpointing = (False, option == "gradient_checkpointing")
    plain, model = (unet(name, torch.float64, gradient_checkpointing=on) for on in checkpointing)
    if option == "channels_last":
        model.to(memory_format=torch.channels_last)
    gradients = []
    for one in (plain, model):
        out = run(one, name, torch.float64)
        assert vectors.close(out, output)
        out.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))
    assert vectors.close(*gradients)


@pytest.mark.parametrize("name", CASES)
def test_every_block_of_the_unet_equals_the_original(name: str) -> None:
    model, activations = unet(name, torch.float64), vectors.outputs(vectors.case(name)[1], torch.float64)
    outputs = {}
    modules = {"input_blocks.1": model.down[0], "input_blocks.last": model.down[-1]}
    modules |= {"middle_block": model.middle, "output_blocks.0": model.up[0]}
    for key, module in modules.items():
        module.register_forward_hook(lambda module, args, output, key=key: outputs.update({key: output[:, :8]}))
    model.time.register_forward_hook(lambda module, args, output: outputs.update(emb=output))
    run(model, name, torch.float64)
    assert vectors.close(outputs["emb"], activations["emb"])
    for key in modules:
        assert vectors.close(outputs[key], activations[f"act.{key}"]), key


def break_norms(model: UNet) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6


def break_order(model: UNet) -> None:  # the skip before h, where both have as many channels
    for block in model.up:
        block.register_forward_pre_hook(lambda module, args: (args[0].roll(args[0].shape[1] // 2, dims=1), *args[1:]))


def break_heads(model: UNet) -> None:
    for module in model.modules():
        if isinstance(module, blocks.SelfAttention | Attention):
            module.heads = 1


@pytest.mark.parametrize("damage", [break_norms, break_order, break_heads])
@pytest.mark.parametrize("name", CASES)
def test_a_damaged_unet_does_not_equal_the_original(name: str, damage) -> None:
    model = unet(name, torch.float64)
    damage(model)
    assert not vectors.close(run(model, name, torch.float64), expected(name, torch.float64))


def block(name: str, module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A block with the weights `name`.* of the case."""
    layer = blocks.Transformer if isinstance(module, Attention | blocks.GEGLU) else type(module)  # parts of it
    keys = key_map.build_key_map(module, {"": name}, {type(module): key_maps.LAYERS[layer]})
    if name == "attn_new":  # qkv is ordered as in latentdiff
        keys = {key: entry._replace(heads=0) for key, entry in keys.items()}
    weights = vectors.weights(vectors.case("blocks")[0])
    module.load_state_dict(key_map.to_dst(weights, keys, key_map.shapes_of(module))[0])
    return module.to(dtype).eval()


BLOCKS = {
    "res": lambda: blocks.ResBlock(32, 64, 48, 32),
    "res_ssn_down": lambda: blocks.ResBlock(32, 32, 48, 32, scale_shift=True, resample=nn.AvgPool2d(2)),
    "res_up": lambda: blocks.ResBlock(32, 32, 48, 32, resample=nn.Upsample(scale_factor=2)),
    "attn": lambda: blocks.SelfAttention(32, 2, 32),
    "attn_new": lambda: blocks.SelfAttention(32, 2, 32),
    "st": lambda: blocks.Transformer(32, 2, 8, 1, 32),
}


@DTYPES
@pytest.mark.parametrize("size", ["", "_small"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_equals_the_original(name: str, size: str, dtype: torch.dtype) -> None:
    module, tensors = block(name, BLOCKS[name](), dtype), vectors.case("blocks")[1]
    inputs, output = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)[name + size]
    x, cond = inputs["x"] * 1e-3 if size else inputs["x"], Cond(context=inputs["ctx"])
    emb = torch.nn.functional.silu(inputs["emb"])  # the U-Net applies it once for all blocks
    assert vectors.close(module(x, emb, cond), output)
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.eps *= 2
    assert not vectors.close(module(x, emb, cond), output, 1e-7)


@DTYPES
def test_cross_attention_and_its_mask_equal_the_original(dtype: torch.dtype) -> None:
    module, tensors = block("ca", Attention(32, 2, 16, 8), dtype), vectors.case("blocks")[1]
    inputs, outputs = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    assert vectors.close(module(inputs["seq"], inputs["ctx"]), outputs["ca"])
    assert vectors.close(module(inputs["seq"], inputs["ctx"], inputs["ctx_mask"]), outputs["ca_masked"])
    assert not vectors.close(module(inputs["seq"], inputs["ctx"], ~inputs["ctx_mask"]), outputs["ca_masked"])


@DTYPES
def test_feed_forward_and_resampling_equal_the_original(dtype: torch.dtype) -> None:
    tensors = vectors.case("blocks")[1]
    inputs, outputs = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    assert vectors.close(block("ff_glu", blocks.GEGLU(32), dtype)(inputs["seq"]), outputs["ff_glu"])
    for name, module in {"unet_down": blocks.Downsample(32), "unet_up": blocks.Upsample(32)}.items():
        module = block(name, module, dtype) if name == "unet_down" else load_up(module, dtype)
        assert vectors.close(module(inputs["x"], None, Cond()), outputs[name])
        assert vectors.close(module(inputs["x_odd"], None, Cond()), outputs[f"{name}_odd"])


def load_up(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    weights = vectors.weights(vectors.case("blocks")[0])
    module.load_state_dict({key: weights[f"unet_up.{key}"] for key in module.state_dict()})
    return module.to(dtype)


def test_the_timestep_embedding_equals_the_original() -> None:
    tensors = vectors.case("timestep_embedding")[1]
    inputs, outputs = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)
    for width in (32, 33):
        assert vectors.close(timestep_embedding(inputs["t"], width), outputs[f"d{width}"])
    assert vectors.close(timestep_embedding(inputs["t"], 320)[:, ::10], outputs["d320"])
    assert vectors.close(timestep_embedding(inputs["tf"], 32), outputs["frac_d32"])
    assert not vectors.close(timestep_embedding(inputs["t"], 32).roll(16, dims=1), outputs["d32"])


@pytest.mark.parametrize("name", CASES)
def test_the_key_map_covers_every_weight_and_its_inverse_is_exact(name: str) -> None:
    src = vectors.weights(vectors.case(name)[0])
    config, context_dim = CASES[name]
    with torch.device("meta"):
        model = UNet(config, 3, 3, context_dim)
    keys = key_maps.unet_key_map(model)
    dst, missing, wrong = key_map.to_dst(src, keys, key_map.shapes_of(model))
    assert not missing and not wrong
    assert {key: value.shape for key, value in dst.items()} == {k: v.shape for k, v in model.state_dict().items()}
    back = key_map.to_src(dst, keys)
    assert back.keys() == src.keys() and all(torch.equal(back[key], src[key]) for key in src)
