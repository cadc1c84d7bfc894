"""The U-Net and its blocks, loaded through the name map, give the original release's numbers."""

from dataclasses import replace

import pytest
import torch
import vectors
from torch import Tensor, nn

from latentdiff.conditioning.cond import Cond
from latentdiff.convert.compvis import key_map
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
    """The U-Net of a case with its generated weights."""
    config, context_dim = CASES[name]
    model = UNet(replace(config, **changes), 3, 3, context_dim)
    model.load_state_dict(key_map.unet_from_original(vectors.weights(vectors.case(name)[0]), model))
    return model.to(dtype).eval()


def run(model: UNet, name: str, dtype: torch.dtype) -> Tensor:
    given = vectors.inputs(vectors.case(name)[1], dtype)
    return model(given["x"], given["t"], Cond(context=given.get("context")))


def expected(name: str, dtype: torch.dtype) -> Tensor:
    return vectors.outputs(vectors.case(name)[1], dtype)["out"]


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_the_unet_equals_the_original(name: str, dtype: torch.dtype) -> None:
    assert vectors.close(run(unet(name, dtype), name, dtype), expected(name, dtype))


@pytest.mark.parametrize("switch", ["recompute", "channels_last"])
def test_the_unet_equals_the_original_whatever_saves_memory_or_time(switch: str) -> None:
    name, want = "unet_xattn_headch", expected("unet_xattn_headch", torch.float64)
    plain, model = (unet(name, torch.float64, recompute=on) for on in (False, switch == "recompute"))
    if switch == "channels_last":
        model.to(memory_format=torch.channels_last)
    gradients = []
    for one in (plain, model):
        out = run(one, name, torch.float64)
        assert vectors.close(out, want)
        out.square().sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in one.parameters()]))
    assert vectors.close(*gradients)


@pytest.mark.parametrize("name", CASES)
def test_every_part_of_the_unet_equals_the_original(name: str) -> None:
    model, want = unet(name, torch.float64), vectors.outputs(vectors.case(name)[1], torch.float64)
    seen = {}
    places = {"input_blocks.1": model.down[0], "input_blocks.last": model.down[-1]}
    places |= {"middle_block": model.middle, "output_blocks.0": model.up[0]}
    for place, module in places.items():
        module.register_forward_hook(lambda module, args, output, place=place: seen.update({place: output[:, :8]}))
    model.time.register_forward_hook(lambda module, args, output: seen.update(emb=output))
    run(model, name, torch.float64)
    assert vectors.close(seen["emb"], want["emb"])
    for place in places:
        assert vectors.close(seen[place], want[f"act.{place}"]), place


def break_norms(model: UNet) -> None:
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = 1e-6


def break_order(model: UNet) -> None:  # where both are equally wide: the skip before h
    for stage in model.up:
        stage.register_forward_pre_hook(lambda module, args: (args[0].roll(args[0].shape[1] // 2, dims=1), *args[1:]))


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
    """A building block with the weights that the case calls `name`.*"""
    weights, state = vectors.weights(vectors.case("blocks")[0]), {}
    for ours, value in module.state_dict().items():
        inside = key_map.INSIDE.get(type(module), key_map.INSIDE[blocks.Transformer])
        theirs = weights[".".join([name, *(inside.get(part, part) for part in ours.split("."))])]
        state[ours] = theirs.reshape(value.shape)
        if name == "attn" and ours.startswith("qkv"):
            state[ours] = key_map._regroup(state[ours], 2, 3)
    module.load_state_dict(state)
    return module.to(dtype).eval()


BLOCKS = {
    "res": lambda: blocks.ResBlock(32, 64, 48, 32),
    "res_ssn_down": lambda: blocks.ResBlock(32, 32, 48, 32, scale_shift=True, resample=blocks.halve),
    "res_up": lambda: blocks.ResBlock(32, 32, 48, 32, resample=blocks.double),
    "attn": lambda: blocks.SelfAttention(32, 2, 32),
    "attn_new": lambda: blocks.SelfAttention(32, 2, 32),
    "st": lambda: blocks.Transformer(32, 2, 8, 1, 32),
}


@DTYPES
@pytest.mark.parametrize("size", ["", "_small"])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_equals_the_original(name: str, size: str, dtype: torch.dtype) -> None:
    module, tensors = block(name, BLOCKS[name](), dtype), vectors.case("blocks")[1]
    given = vectors.inputs(tensors, dtype)
    x = given["x"] * 1e-3 if size else given["x"]
    emb = torch.nn.functional.silu(given["emb"])  # which the U-Net applies once for all blocks
    got, want = module(x, emb, Cond(context=given["ctx"])), vectors.outputs(tensors, dtype)[name + size]
    assert vectors.close(got, want)
    for norm in module.modules():
        if isinstance(norm, nn.GroupNorm):
            norm.eps *= 2
    assert not vectors.close(module(x, emb, Cond(context=given["ctx"])), want, 1e-7)


@DTYPES
def test_cross_attention_and_its_mask_equal_the_original(dtype: torch.dtype) -> None:
    module, tensors = block("ca", Attention(32, 2, 16, 8), dtype), vectors.case("blocks")[1]
    given, want = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    assert vectors.close(module(given["seq"], given["ctx"]), want["ca"])
    assert vectors.close(module(given["seq"], given["ctx"], given["ctx_mask"]), want["ca_masked"])
    assert not vectors.close(module(given["seq"], given["ctx"], ~given["ctx_mask"]), want["ca_masked"])


@DTYPES
def test_feed_forward_and_resampling_equal_the_original(dtype: torch.dtype) -> None:
    tensors = vectors.case("blocks")[1]
    given, want = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    assert vectors.close(block("ff_glu", blocks.GEGLU(32), dtype)(given["seq"]), want["ff_glu"])
    for name, module in {"unet_down": blocks.Downsample(32), "unet_up": blocks.Upsample(32)}.items():
        module = block(name, module, dtype) if name == "unet_down" else load_up(module, dtype)
        assert vectors.close(module(given["x"], None, Cond()), want[name])
        assert vectors.close(module(given["x_odd"], None, Cond()), want[f"{name}_odd"])


def load_up(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    weights = vectors.weights(vectors.case("blocks")[0])
    module.load_state_dict({key: weights[f"unet_up.{key}"] for key in module.state_dict()})
    return module.to(dtype)


def test_the_timestep_embedding_equals_the_original() -> None:
    tensors = vectors.case("timestep_embedding")[1]
    given, want = vectors.inputs(tensors, torch.float32), vectors.outputs(tensors, torch.float32)
    for width in (32, 33):
        assert vectors.close(timestep_embedding(given["t"], width), want[f"d{width}"])
    assert vectors.close(timestep_embedding(given["t"], 320)[:, ::10], want["d320"])
    assert vectors.close(timestep_embedding(given["tf"], 32), want["frac_d32"])
    assert not vectors.close(timestep_embedding(given["t"], 32).roll(16, dims=1), want["d32"])


@pytest.mark.parametrize("name", CASES)
def test_the_name_map_reaches_every_weight_and_turns_back_bit_for_bit(name: str) -> None:
    theirs = vectors.weights(vectors.case(name)[0])
    config, context_dim = CASES[name]
    with torch.device("meta"):
        model = UNet(config, 3, 3, context_dim)
    ours = key_map.unet_from_original(theirs, model)
    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in model.state_dict().items()}
    back = key_map.unet_to_original(ours, model)
    assert back.keys() == theirs.keys() and all(torch.equal(back[key], theirs[key]) for key in theirs)
