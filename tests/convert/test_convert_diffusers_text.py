"""LDMBertModel and BertTokenizer read as our text condition does, both ways."""

import json

import pytest
import torch
from theirs import TOLERANCE, WORDS, exported, imported, off, randomised
from tokenizers import Tokenizer, models

from latentdiff.config import UserError
from latentdiff.convert.diffusers import text_encoder
from latentdiff.convert.diffusers.import_ import import_folder
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece

transformers = pytest.importorskip("transformers")
latent_diffusion = pytest.importorskip("diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion")
SIZES = [  # d_model, heads, width of a head, layers, length
    (16, 2, 8, 2, 77),
    (24, 3, 4, 1, 12),
]
SHOWN = torch.zeros(2, dtype=torch.bool)


def bert(width, heads, head_dim, layers, length):
    config = latent_diffusion.LDMBertConfig(
        vocab_size=len(WORDS), max_position_embeddings=length, encoder_layers=layers, encoder_ffn_dim=4 * width,
        encoder_attention_heads=heads, head_dim=head_dim, d_model=width,
    )  # fmt: skip
    return randomised(latent_diffusion.LDMBertModel(config))


@torch.no_grad()
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_text_encoder_is_the_same_here_and_there(sizes, tmp_path):
    theirs = bert(*sizes)
    tokens = torch.randint(len(WORDS), (2, sizes[-1]), generator=torch.Generator().manual_seed(0))
    ours, wanted = imported(theirs, tmp_path), theirs(tokens)[0]
    cond = ours.conditioner({"tokens": tokens}, SHOWN)
    assert off(cond.context, wanted) < TOLERANCE and cond.context_mask is None
    again = latent_diffusion.LDMBertModel.from_pretrained(exported(tmp_path) / "bert").eval()
    assert off(again(tokens)[0], wanted) < TOLERANCE
    text = ours.conditioner.parts[0]
    text.blocks[0].attention.q.weight.copy_(text.blocks[0].attention.k.weight)
    assert off(ours.conditioner({"tokens": tokens}, SHOWN).context, wanted) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "change", [{"encoder_ffn_dim": 20}, {"activation_function": "relu"}, {"rotary": True}], ids=str
)
def test_an_option_that_we_cannot_follow_is_refused_by_name(change, tmp_path):
    bert(*SIZES[1]).save_pretrained(tmp_path / "theirs")
    path = tmp_path / "theirs" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UserError, match=next(iter(change))):
        import_folder(str(tmp_path / "theirs"), output=str(tmp_path / "run"))


def test_a_vocabulary_gives_a_lone_encoder_its_words(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    ours = imported(bert(*SIZES[1]), tmp_path, vocab=str(tmp_path / "vocab.txt"))
    assert "mean NOTHING" not in capsys.readouterr().out
    assert ours.tokens(["Red circles"])["tokens"][0, :5].tolist() == [2, 6, 7, 8, 3]
    imported(bert(*SIZES[1]), tmp_path, "other")
    assert "mean NOTHING" in capsys.readouterr().out


CAPTIONS = ["", "a red circle, a blue circles", "Red  BLUÉ", "Ünknown", "a中red", "red " * 30]


@pytest.mark.parametrize("lowercase", [True, False])
def test_bert_tokenizer_reads_captions_as_ours_does(lowercase, tmp_path):
    words = WORDS if lowercase else [*WORDS, "Red"]
    ours = CaptionTokenizer(wordpiece(words, lowercase), 12)
    assert text_encoder.write_tokenizer(tmp_path / "tokenizer", ours) == "BertTokenizer"
    theirs = transformers.BertTokenizer.from_pretrained(tmp_path / "tokenizer")
    read = theirs(CAPTIONS, padding="max_length", max_length=12, truncation=True).input_ids
    assert read == ours.encode(CAPTIONS).tolist()
    again = CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "tokenizer"), 12)
    assert again.to_bytes() == ours.to_bytes()
    theirs.save_pretrained(tmp_path / "saved")
    saved = CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "saved"), 12)
    assert saved.encode(CAPTIONS).tolist() == read


def test_a_tokenizer_that_is_none_of_berts_is_left_as_it_is(tmp_path):
    odd = CaptionTokenizer(Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]")), 12)
    assert text_encoder.vocabulary(odd) is None
    assert text_encoder.write_tokenizer(tmp_path / "tokenizer", odd) == "PreTrainedTokenizerFast"
    assert CaptionTokenizer(text_encoder.read_tokenizer(tmp_path / "tokenizer"), 12).to_bytes() == odd.to_bytes()
