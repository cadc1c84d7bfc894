"""Every released model is recognised by its names and shapes, and its own config says the same as the paper's recipe.

tests/fixtures/zoo holds the released configs, and the names and shapes of the released checkpoints.
"""

import gzip
import json
from functools import cache

import pytest
import torch
from conftest import ROOT

from latentdiff.config import UserError
from latentdiff.convert.compvis import import_, key_map, zoo
from latentdiff.convert.compvis.model_config import original_of
from latentdiff.convert.compvis.state_dict import State
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece

ZOO = ROOT / "tests" / "fixtures" / "zoo"
CONFIGS = json.loads((ZOO / "configs.json").read_text())
TOKENIZER = CaptionTokenizer(wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), 77)


@cache
def shapes() -> dict:
    return json.loads(gzip.decompress((ZOO / "shapes.json.gz").read_bytes()))


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    """A released checkpoint without its numbers, and nearly without memory."""
    types = shapes()[name]["other_types"]
    keys = shapes()[name]["keys"].items()
    return {key: torch.zeros((), dtype=getattr(torch, types.get(key, "float32"))).expand(shape) for key, shape in keys}


@cache
def recognised(name: str):
    return zoo.recognise(checkpoint(name))


def wants_text(original) -> bool:
    return bool(
        original.diffusion and original.diffusion.conditions and hasattr(original.diffusion.conditions[0], "length")
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_a_released_model_is_recognised_and_all_of_it_is_taken(name, capsys):
    tensors = checkpoint(name)
    original = recognised(name)
    assert name in original.names
    state = State(tensors, averages=True)
    import_.take(state, original, TOKENIZER if wants_text(original) else None)
    state.check()
    left = {key for key in tensors.keys() - state.taken if not key.startswith(("loss.", "model.", "model_ema."))}
    assert not left
    if state.averages:
        taken = {key for key in state.taken if key.startswith(key_map.AVERAGE)}
        assert taken == set(shapes()[name]["ema"].values()) and not any(k.startswith("model.") for k in state.taken)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_released_config_says_what_the_recipe_says(name):
    original, found = original_of(CONFIGS[name]), recognised(name)
    one, other = original.first_stage.autoencoder, found.first_stage.autoencoder
    assert (one.bottleneck.__class__, one.z_channels, one.channel_mult) == (
        other.bottleneck.__class__, other.z_channels, other.channel_mult,
    )  # fmt: skip
    assert one.attention_levels == other.attention_levels and one.mid_attention == other.mid_attention
    if original.diffusion is not None:
        ours, theirs = original.diffusion, found.diffusion
        assert original.scale == found.scale
        assert (ours.unet, ours.schedule, ours.objective) == (theirs.unet, theirs.schedule, theirs.objective)
        assert [type(c) for c in ours.conditions] == [type(c) for c in theirs.conditions]
        assert [type(f) for f in ours.fields] == [type(f) for f in theirs.fields]
        assert (ours.train.ema_decay > 0) == (theirs.train.ema_decay > 0)


def test_a_model_that_was_not_released_is_not_recognised():
    tensors = checkpoint("celeba256")
    name = "model.diffusion_model.time_embed.0.weight"
    for changed in ({name: torch.zeros(896, 223)}, {"model.diffusion_model.more.weight": torch.zeros(1)}):
        with pytest.raises(UserError, match="none of the released models; give the model's own config.yaml"):
            zoo.recognise(tensors | changed)


def test_a_weight_that_is_missing_or_has_another_shape_is_named():
    tensors = checkpoint("vq-f4")
    original = zoo.recognise(tensors)
    del tensors["quantize.embedding.weight"]
    tensors["decoder.conv_out.bias"] = torch.zeros(4)
    state = State(tensors, averages=True)
    import_.take(state, original, None)
    with pytest.raises(UserError, match=r"missing: quantize.embedding.weight; 1 do not fit: decoder.conv_out.bias"):
        state.check()
