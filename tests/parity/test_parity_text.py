"""The text encoder and the class embedding give the original release's numbers (tests/fixtures/vectors)."""

import pytest
import torch
import vectors

from latentdiff.conditioning.label import LabelCondition, LabelConfig
from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.convert.compvis import key_map

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def encoder(dtype: torch.dtype, heads: int = 8) -> TextCondition:
    config = TextConfig(
        dim=64, depth=2, heads=heads, head_dim=512 // heads, max_length=12, vocab_size=100, mask_padding=False
    )
    module = TextCondition(config, pad_id=0, empty=torch.zeros(12, dtype=torch.int64))
    weights = key_map.text_from_original(vectors.weights(vectors.case("bert_tiny")[0]))
    module.load_state_dict(weights | {"empty": module.empty})
    return module.to(dtype).eval()


@DTYPES
def test_the_text_encoder_equals_the_original(dtype: torch.dtype) -> None:
    tensors = vectors.case("bert_tiny")[1]
    given, want = vectors.inputs(tensors, dtype), vectors.outputs(tensors, dtype)
    shown = torch.zeros(2, dtype=torch.bool)
    for field, name in {"tokens": "emb_full", "tokens_short": "emb_short"}.items():
        assert vectors.close(encoder(dtype)({"tokens": given[field]}, shown).context, want[name])
        assert not vectors.close(encoder(dtype, heads=4)({"tokens": given[field]}, shown).context, want[name])


def test_the_text_map_turns_back_bit_for_bit() -> None:
    theirs = vectors.weights(vectors.case("bert_tiny")[0])
    back = key_map.text_to_original(key_map.text_from_original(theirs))
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], theirs[key]) for key in theirs if "to_logits" not in key)
    assert all(back[key].shape == theirs[key].shape for key in theirs)


@DTYPES
def test_the_class_embedding_equals_the_original(dtype: torch.dtype) -> None:
    meta, tensors = vectors.case("class_embedder")
    module = LabelCondition(LabelConfig(classes=11, dim=16, dropout=0.0))
    module.load_state_dict(vectors.weights(meta))
    given, want = vectors.inputs(tensors, dtype)["class_label"], vectors.outputs(tensors, dtype)["c"]
    shown = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(module.to(dtype)({"label": given}, shown).context, want)
    assert not torch.equal(module({"label": 10 - given}, shown).context, want)
