"""The text encoder and the class embedding give the original release's numbers (tests/fixtures/vectors)."""

import pytest
import torch
import vectors

from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.convert import key_map
from latentdiff.convert.compvis.key_maps import CONDITION, condition_key_map, text_key_map, unused_head

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def encoder(dtype: torch.dtype, heads: int = 8) -> TextCondition:
    config = TextConfig(
        dim=64, depth=2, heads=heads, head_dim=512 // heads, max_length=12, vocab_size=100, mask_padding=False
    )
    module = TextCondition(config, pad_id=0, empty=torch.zeros(12, dtype=torch.int64))
    shapes = key_map.shapes_of(module)
    weights, _, _ = key_map.to_dst(vectors.weights(vectors.case("bert_tiny")[0]), text_key_map(module), shapes)
    module.load_state_dict(weights | {"empty": module.empty})
    return module.to(dtype).eval()


@DTYPES
def test_the_text_encoder_equals_the_original(dtype: torch.dtype) -> None:
    tensors = vectors.case("bert_tiny")[1]
    inputs, expected = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    drop = torch.zeros(2, dtype=torch.bool)
    for field, name in {"tokens": "emb_full", "tokens_short": "emb_short"}.items():
        batch = {"tokens": inputs[field]}
        assert vectors.close(encoder(dtype)(batch, drop).context, expected[name])
        assert not vectors.close(encoder(dtype, heads=4)(batch, drop).context, expected[name])


def test_the_text_encoder_is_the_same_after_import_and_export_bit_for_bit() -> None:
    src = {f"{CONDITION}{key}": value for key, value in vectors.weights(vectors.case("bert_tiny")[0]).items()}
    module = encoder(torch.float32)
    keys = condition_key_map(module)
    dst, missing, wrong = key_map.to_dst(src, keys, key_map.shapes_of(module))
    assert not missing and not wrong
    back = key_map.to_src(dst, keys)
    back |= unused_head(back)
    assert back.keys() == src.keys()
    assert all(torch.equal(back[key], src[key]) for key in src if "to_logits" not in key)
    assert all(back[key].shape == src[key].shape for key in src)


@DTYPES
def test_the_class_embedding_equals_the_original(dtype: torch.dtype) -> None:
    meta, tensors = vectors.case("class_embedder")
    module = LabelCondition(LabelConfig(classes=11, dim=16, dropout=0.0))
    module.load_state_dict(vectors.weights(meta))
    label, expected = vectors.inputs(tensors, dtype)["class_label"], vectors.outputs(tensors, dtype)["c"]
    drop = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(module.to(dtype)({"label": label}, drop).context, expected)
    assert not torch.equal(module({"label": 10 - label}, drop).context, expected)
