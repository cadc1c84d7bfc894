"""LDMBertModel and BertTokenizer compute the same after import and after export."""

import json

import pytest
import torch
from diffusers_models import TOLERANCE, VOCABULARY, exported, imported, randomised, relative_error
from tokenizers import Tokenizer, models

from latentdiff.config import UserError
from latentdiff.convert.diffusers import text_encoder
from latentdiff.convert.diffusers.import_folder import import_folder
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece

transformers = pytest.importorskip("transformers")
latent_diffusion = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
SIZES = [  # d_model, heads, width of a head, layers, length
    (16, 2, 8, 2, 77),
    (24, 3, 4, 1, 12),
]
DROP = torch.zeros(2, dtype=torch.bool)


def bert(width, heads, head_dim, layers, length):
    config = latent_diffusion.LDMBertConfig(
        vocab_size=len(VOCABULARY), max_position_embeddings=length, encoder_layers=layers, encoder_ffn_dim=4 * width,
        encoder_attention_heads=heads, head_dim=head_dim, d_model=width,
    )  # fmt: skip
    return randomised(latent_diffusion.LDMBertModel(config))


@torch.no_grad()
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_text_encoder_computes_the_same(sizes, tmp_path):
    model = bert(*sizes)
    tokens = torch.randint(len(VOCABULARY), (2, sizes[-1]), generator=torch.Generator().manual_seed(0))
    pipeline, expected = imported(model, tmp_path), model(tokens)[0]
    cond = pipeline.conditioner({"tokens": tokens}, DROP)
    assert relative_error(cond.context, expected) < TOLERANCE and cond.context_mask is None
    again = latent_diffusion.LDMBertModel.from_pretrained(exported(tmp_path) / "bert").eval()
    assert relative_error(again(tokens)[0], expected) < TOLERANCE
    text = pipeline.conditioner.parts[0]
    text.blocks[0].attention.q.weight.copy_(text.blocks[0].attention.k.weight)
    assert relative_error(pipeline.conditioner({"tokens": tokens}, DROP).context, expected) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "change", [{"encoder_ffn_dim": 20}, {"activation_function": "relu"}, {"rotary": True}], ids=str
)
def test_an_option_that_cannot_be_converted_is_refused_by_name(change, tmp_path):
    bert(*SIZES[1]).save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=next(iter(change))):
        import_folder(str(tmp_path / "model"), output=str(tmp_path / "run"))


def test_a_text_encoder_alone_takes_a_vocabulary(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    pipeline = imported(bert(*SIZES[1]), tmp_path, vocab=str(tmp_path / "vocab.txt"))
    assert "has NO tokenizer" not in capsys.readouterr().out
    assert pipeline.prepare({"caption": ["Red circles"]})["tokens"][0, :5].tolist() == [2, 6, 7, 8, 3]
    imported(bert(*SIZES[1]), tmp_path, "other")
    assert "has NO tokenizer" in capsys.readouterr().out


CAPTIONS = ["", "a red circle, a blue circles", "Red  BLUÉ", "Ünknown", "a中red", "red " * 30]


@pytest.mark.parametrize("lowercase", [True, False])
def test_an_exported_tokenizer_gives_the_same_tokens_in_transformers(lowercase, tmp_path):
    vocabulary = VOCABULARY if lowercase else [*VOCABULARY, "Red"]
    tokenizer = CaptionTokenizer(wordpiece(vocabulary, lowercase), 12)
    assert text_encoder.write_tokenizer(tmp_path / "tokenizer", tokenizer) == "BertTokenizer"
    bert_tokenizer = transformers.BertTokenizer.from_pretrained(tmp_path / "tokenizer")
    tokens = bert_tokenizer(CAPTIONS, padding="max_length", max_length=12, truncation=True).input_ids
    assert tokens == tokenizer.encode(CAPTIONS).tolist()
    again = CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "tokenizer"), 12)
    assert again.to_bytes() == tokenizer.to_bytes()
    bert_tokenizer.save_pretrained(tmp_path / "saved")
    saved = CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "saved"), 12)
    assert saved.encode(CAPTIONS).tolist() == tokens


def test_a_tokenizer_without_bert_equivalent_is_exported_as_tokenizer_json(tmp_path):
    other = CaptionTokenizer(Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, "[UNK]")), 12)
    assert text_encoder.bert_vocabulary(other) is None
    assert text_encoder.write_tokenizer(tmp_path / "tokenizer", other) == "PreTrainedTokenizerFast"
    assert CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "tokenizer"), 12).to_bytes() == other.to_bytes()
