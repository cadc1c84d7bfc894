"""CLIP score with a small, randomly initialized model; nothing is downloaded."""

import json

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.evaluation.clip_score import ClipScorer

transformers = pytest.importorskip("transformers")


@pytest.fixture
def folder(tmp_path):
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 8, "max_position_embeddings": 8, "eos_token_id": 7, "bos_token_id": 6}  # fmt: skip
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    vocabulary = {"[UNK]": 0, "[PAD]": 1, "red": 2, "star": 3, "blue": 4, "ring": 5, "end": 7}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}
    state = {"version": "1.0", "added_tokens": [], "model": model, "pre_tokenizer": {"type": "Whitespace"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(state))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"), pad_token="[PAD]")
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_the_score_is_100_times_the_cosine_similarity_of_image_and_caption(folder):
    clip = ClipScorer(str(folder), torch.device("cpu"))
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)).expand(6, -1, -1, -1) * 2 - 1
    if not clip.score(x[:1], ["red end"]).item():  # the random network gives a negative cosine
        clip.model.visual_projection.weight.data.neg_()
    captions = [f"{text} end" for text in ("red star", "blue ring", "red ring star", "blue", "star", "ring ring")]
    pixels = (x[:1] / 2 + 0.5 - torch.tensor(clip_mean()).view(3, 1, 1)) / torch.tensor(clip_std()).view(3, 1, 1)
    expected = []
    for caption in captions:  # one at a time, without padding
        tokens = clip.tokenizer([caption], return_tensors="pt")
        with torch.no_grad():
            inputs = {name: tokens[name] for name in ("input_ids", "attention_mask")}
            out = clip.model(pixel_values=pixels, **inputs)
        expected.append(100 * torch.nn.functional.cosine_similarity(out.image_embeds, out.text_embeds).clamp(min=0))
    expected = torch.cat(expected)
    assert len(expected.unique()) > 2  # the captions have different scores
    torch.testing.assert_close(clip.score(x, captions), expected, rtol=1e-3, atol=1e-3)


def clip_mean() -> tuple[float, ...]:
    return transformers.CLIPImageProcessor().image_mean


def clip_std() -> tuple[float, ...]:
    return transformers.CLIPImageProcessor().image_std


def test_a_folder_without_a_model_is_rejected(tmp_path):
    with pytest.raises(UserError, match="must be a folder with a CLIP model"):
        ClipScorer(str(tmp_path), torch.device("cpu"))
