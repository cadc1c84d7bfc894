"""The tokenizer: deterministic training, the token ids of BERT with its vocabulary, and long captions."""

import hashlib
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from latentdiff.config import UserError
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, load_tokenizer, train_wordpiece

DATA = Path(os.environ.get("LATENTDIFF_DATA", "data"))
COLORS, KINDS = ("red", "green", "purple", "Grey"), ("star", "starfish", "circle", "café", "猫")
CAPTIONS = [
    f"a {color} {kind}, {relation} it!" for color in COLORS for kind in KINDS for relation in ("beside", "below")
]

TRAIN_SCRIPT = """
import hashlib, random
from test_data_tokenizer import CAPTIONS, CaptionTokenizer, train_wordpiece
captions = CAPTIONS * 2
random.shuffle(captions)
print(hashlib.sha256(CaptionTokenizer(train_wordpiece(captions, 75), 16).to_bytes()).hexdigest())
"""


def test_training_does_not_depend_on_the_hash_seed_or_the_order_of_captions():
    digests = set()
    for seed in ("1", "2"):
        env = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parent)}
        result = subprocess.run([sys.executable, "-c", TRAIN_SCRIPT], env=env, capture_output=True, check=True)
        digests.add(result.stdout)
    in_process = CaptionTokenizer(train_wordpiece(iter(CAPTIONS * 2), 75), 16)
    digests.add(hashlib.sha256(in_process.to_bytes()).hexdigest().encode() + b"\n")
    assert len(digests) == 1
    assert in_process.vocab_size == 75  # the maximum, so that ties between equally frequent candidates were broken


def test_different_captions_give_a_different_vocabulary():
    assert train_wordpiece(CAPTIONS, 75).to_str() != train_wordpiece(CAPTIONS[:-8], 75).to_str()


def test_a_caption_is_enclosed_in_cls_and_sep_and_padded():
    tokenizer = CaptionTokenizer(train_wordpiece(CAPTIONS, 200), 12)
    tokens = tokenizer.encode(["A RED star", ""])
    assert tokens.shape == (2, 12) and tokens.dtype == torch.int64
    names = [tokenizer.tokenizer.id_to_token(i) for i in tokens[0].tolist()]
    assert names == ["[CLS]", "a", "red", "star", "[SEP]", *["[PAD]"] * 7]
    assert [tokenizer.tokenizer.token_to_id(token) for token in SPECIALS] == [0, 1, 2, 3, 4]
    assert tokenizer.pad_id == 0
    assert tokenizer.empty.tolist() == [2, 3] + [0] * 10


def test_unseen_words_are_split_and_only_unseen_characters_are_unknown():
    tokenizer = CaptionTokenizer(train_wordpiece(CAPTIONS, 200), 40)
    unseen = "tabrag flour gape"  # all letters occur in the captions
    assert tokenizer.unk_id not in tokenizer.encode([unseen, "Café 猫猫", "CAFE!"])
    assert tokenizer.tokenizer.encode("star ☃").tokens == ["star", "[UNK]"]


def test_the_rarest_characters_of_a_too_large_alphabet_are_dropped():
    tokenizer = train_wordpiece(["aaab", "aac", "a"], len(SPECIALS) + 4)
    assert set(tokenizer.get_vocab()) == {*SPECIALS, "a", "##a", "b", "##b"}  # of b and c, equally rare, b is kept


def test_a_long_caption_is_truncated_or_refused_if_strict():
    tokenizer = CaptionTokenizer(train_wordpiece(CAPTIONS, 200), 6)
    long, short = "a red star below it !", "a red star it"
    tokens = tokenizer.encode([long])[0]
    assert tokens[0] == tokenizer.cls_id and tokens[-1] == tokenizer.sep_id
    assert tokenizer.too_long([short, long]) == [(long, 6)]
    assert tokenizer.encode([short], strict=True).shape == (1, 6)
    with pytest.raises(UserError, match=r"'a red star below it !' has 6 tokens.* at most 4"):
        tokenizer.encode([short, long], strict=True)


def test_the_tokenizer_is_restored_from_bytes_a_file_or_pickle(tmp_path):
    tokenizer = CaptionTokenizer(train_wordpiece(CAPTIONS, 200), 16)
    tokenizer.save(tmp_path / "tokenizer.json")
    copies = [
        CaptionTokenizer(tmp_path / "tokenizer.json", 16),
        CaptionTokenizer.from_bytes(tokenizer.to_bytes(), 16),
        pickle.loads(pickle.dumps(tokenizer)),  # as in spawned workers
    ]
    for copy in copies:
        assert torch.equal(copy.encode(CAPTIONS), tokenizer.encode(CAPTIONS))
        assert copy.to_bytes() == tokenizer.to_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_truncation_and_padding_set_in_a_tokenizer_file_are_ignored(tmp_path):
    tokenizer = train_wordpiece(CAPTIONS, 200)
    expected = CaptionTokenizer(tokenizer, 16).encode(CAPTIONS)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert torch.equal(CaptionTokenizer(tmp_path / "tokenizer.json", 16).encode(CAPTIONS), expected)


def test_captions_are_lowercased_unless_the_vocabulary_has_capitals(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join([*SPECIALS, "Red", "red"]) + "\n")
    assert load_tokenizer(path).encode("Red red RED").ids == [5, 6, 1]
    path.write_text("\r\n".join([*SPECIALS, "red"]) + "\r\n")
    assert load_tokenizer(path).encode("Red red RED").ids == [5, 5, 5]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("none.txt", None, "no such file"),
        ("tokenizer.json", "{", "is not a valid vocab.txt or tokenizer.json"),
        ("vocab.txt", "a\na\n", "has a token twice"),
        ("vocab.txt", "[PAD]\n[UNK]\nred\n", r"has no \[CLS\], \[SEP\]"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        CaptionTokenizer(tmp_path / name, 16)


def test_the_vocabulary_of_bert_gives_the_token_ids_of_bert():
    path = DATA / "vocab" / "bert-base-uncased-vocab.txt"
    if not path.exists():
        pytest.skip(f"needs {path} (LATENTDIFF_DATA)")
    tokenizer = CaptionTokenizer(path, 77)
    expected = [101, 1037, 7605, 17552, 1997, 1037, 29145, 102]
    assert tokenizer.encode(["a 3d render of a zebra"])[0].tolist() == expected + [0] * 69
    assert tokenizer.vocab_size == 30522
