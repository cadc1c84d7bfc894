"""Every released model is recognised by names and shapes, and its own config gives the same recipe as recipes/*/paper.

tests/fixtures/zoo has the released configs, and the names and shapes of the weights of the released checkpoints.
"""

import gzip
import json
from functools import cache

import pytest
import torch
from conftest import ROOT

from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis import zoo
from latentdiff.convert.compvis.import_checkpoint import read_run
from latentdiff.convert.compvis.key_maps import EMA
from latentdiff.convert.compvis.model_config import read_model
from latentdiff.convert.compvis.state_dict import CheckpointReader
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, wordpiece

ZOO = ROOT / "tests" / "fixtures" / "zoo"
CONFIGS = json.loads((ZOO / "configs.json").read_text())
TOKENIZER = CaptionTokenizer(wordpiece(SPECIALS), 77)


@cache
def shapes() -> dict:
    return json.loads(gzip.decompress((ZOO / "shapes.json.gz").read_bytes()))


def checkpoint(name: str) -> dict[str, torch.Tensor]:
    """Zeros in the shapes of a released checkpoint, almost without memory."""
    dtypes = shapes()[name]["other_types"]
    keys = shapes()[name]["keys"].items()
    return {key: torch.zeros((), dtype=getattr(torch, dtypes.get(key, "float32"))).expand(shape) for key, shape in keys}


@cache
def recognised(name: str):
    return zoo.recognise(checkpoint(name))


def reads_text(model) -> bool:
    return bool(model.diffusion and any(isinstance(c, TextConfig) for c in model.diffusion.conditions))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_released_model_is_recognised_and_all_of_it_is_imported(name):
    tensors = checkpoint(name)
    model = recognised(name)
    assert name in model.names
    reader = CheckpointReader(tensors, use_ema=True)
    read_run(reader, model, TOKENIZER if reads_text(model) else None)
    reader.check_complete()
    assert not {key for key in tensors.keys() - reader.used if not key.startswith(("loss.", "model.", "model_ema."))}
    if reader.uses_ema:
        used = {key for key in reader.used if key.startswith(EMA)}
        assert used == set(shapes()[name]["ema"].values()) and not any(k.startswith("model.") for k in reader.used)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_released_config_and_the_recipe_agree(name):
    from_config, from_weights = read_model(CONFIGS[name]), recognised(name)
    a, b = from_config.first_stage.autoencoder, from_weights.first_stage.autoencoder
    assert type(a.bottleneck) is type(b.bottleneck)
    assert (a.z_channels, a.channel_mult) == (b.z_channels, b.channel_mult)
    assert (a.attention_levels, a.mid_attention) == (b.attention_levels, b.mid_attention)
    if from_config.diffusion is not None:
        a, b = from_config.diffusion, from_weights.diffusion
        assert from_config.scale == from_weights.scale
        assert (a.unet, a.schedule, a.objective) == (b.unet, b.schedule, b.objective)
        assert list(map(type, a.conditions)) == list(map(type, b.conditions))
        assert list(map(type, a.derived_fields)) == list(map(type, b.derived_fields))
        assert (a.train.ema_decay > 0) == (b.train.ema_decay > 0)


def test_another_model_is_not_recognised():
    tensors = checkpoint("celeba256")
    name = "model.diffusion_model.time_embed.0.weight"
    for changed in ({name: torch.zeros(896, 223)}, {"model.diffusion_model.more.weight": torch.zeros(1)}):
        with pytest.raises(UserError, match="none of the released models; give the model's own config.yaml"):
            zoo.recognise(tensors | changed)


def test_missing_weights_and_wrong_shapes_are_named():
    tensors = checkpoint("vq-f4")
    model = zoo.recognise(tensors)
    del tensors["quantize.embedding.weight"]
    tensors["decoder.conv_out.bias"] = torch.zeros(4)
    reader = CheckpointReader(tensors, use_ema=True)
    read_run(reader, model, None)
    with pytest.raises(UserError, match=r"missing: quantize.embedding.weight; 1 do not fit: decoder.conv_out.bias"):
        reader.check_complete()
