"""Captions <-> token ids: a WordPiece vocabulary, trained on the user's own captions or read from a file."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from latentdiff.config import UserError
from latentdiff.training.files import atomic_path

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # in trained vocabularies, their ids are 0 to 4
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the fork of data loader workers


def train_wordpiece(captions: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a lower-case WordPiece tokenizer of at most `vocab_size` tokens; deterministic, for any order of captions.

    The trainer of the library numbers the `##c` tokens in the order of a randomly seeded hash map and breaks ties
    between merges by these numbers. Passing them as special tokens fixes the numbers; the tokenizer is then built
    anew from the sorted vocabulary.
    """
    captions = list(captions)
    tokenizer = wordpiece(SPECIALS)
    characters = _alphabet(tokenizer, captions, room=vocab_size - len(SPECIALS))
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[*SPECIALS, *(f"##{c}" for c in characters if _continues(tokenizer, c))],
        initial_alphabet=characters,
        limit_alphabet=len(characters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(captions, trainer)
    return wordpiece([*SPECIALS, *sorted(set(tokenizer.get_vocab()) - set(SPECIALS))])


def wordpiece(vocab: Sequence[str], lowercase: bool = True) -> Tokenizer:
    """The tokenizer of BERT with the given vocabulary, in the order of the ids."""
    ids = {token: i for i, token in enumerate(vocab)}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)  # lower-casing also strips accents
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return tokenizer


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a vocab.txt (one token per line) or a tokenizer.json."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"tokenizer {str(path)!r}: there is no such file; use a vocab.txt or a tokenizer.json")
    try:
        text = path.read_text("utf-8-sig")
        return Tokenizer.from_str(text) if path.suffix == ".json" else _from_vocab(text)
    except Exception as error:  # the library raises plain Exception
        raise UserError(f"tokenizer {str(path)!r} is not a valid vocab.txt or tokenizer.json: {error}") from None


class CaptionTokenizer:
    """Captions -> int64 [B, length]: [CLS], the caption (truncated), [SEP], then [PAD]."""

    def __init__(self, source: str | Path | Tokenizer, length: int):
        assert length >= 3, f"length is {length}; it must be at least 3: [CLS], a token and [SEP]"
        tokenizer = source if isinstance(source, Tokenizer) else load_tokenizer(source)
        self.tokenizer = Tokenizer.from_str(tokenizer.to_str())  # a copy, whose settings are changed
        self.tokenizer.no_truncation()  # a tokenizer.json may set it
        self.tokenizer.no_padding()
        self.length = length
        missing = ", ".join(token for token in SPECIALS[:4] if self.tokenizer.token_to_id(token) is None)
        if missing:
            raise UserError(f"the tokenizer has no {missing}; use one for BERT, or train one on your captions")
        self.pad_id, self.unk_id, self.cls_id, self.sep_id = map(self.tokenizer.token_to_id, SPECIALS[:4])

    @property
    def vocab_size(self) -> int:
        """Number of rows of an embedding table: one more than the largest id."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @property
    def empty(self) -> Tensor:
        """Tokens of "": int64 [length]."""
        return self.encode([""])[0]

    def encode(self, captions: Sequence[str], strict: bool = False) -> Tensor:
        """int64 [B, length]. strict: raise UserError for captions that would be truncated."""
        if strict and (too_long := self.too_long(captions)):
            caption, count = too_long[0]
            limit = self.length - 2
            raise UserError(f"prompt {caption!r} has {count} tokens, but this model reads at most {limit}; shorten it")
        tokens = torch.full((len(captions), self.length), self.pad_id)  # [B, length]
        for row, caption in zip(tokens, captions):
            ids = [self.cls_id, *self._ids(caption)[: self.length - 2], self.sep_id]
            row[: len(ids)] = torch.tensor(ids)
        return tokens

    def too_long(self, captions: Iterable[str]) -> list[tuple[str, int]]:
        """The captions that would be truncated, each with its number of tokens (without [CLS] and [SEP])."""
        captions = list(captions)
        return [(text, count) for text, count in zip(captions, self.lengths(captions)) if count > self.length - 2]

    def lengths(self, captions: Iterable[str]) -> list[int]:
        """Number of tokens of each caption, without [CLS] and [SEP]."""
        return [len(self._ids(caption)) for caption in captions]

    def _ids(self, caption: str) -> list[int]:
        return self.tokenizer.encode(caption, add_special_tokens=False).ids  # encode_batch starts threads

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json, which the transformers library also reads."""
        with atomic_path(Path(path)) as tmp:
            tmp.write_bytes(self.to_bytes())

    def to_bytes(self) -> bytes:
        return self.tokenizer.to_str(pretty=True).encode("utf-8")

    @classmethod
    def from_bytes(cls, data: bytes, length: int) -> "CaptionTokenizer":
        return cls(Tokenizer.from_str(data.decode("utf-8")), length)


def _alphabet(tokenizer: Tokenizer, captions: list[str], room: int) -> list[str]:
    """The characters of the captions, sorted; if they need more than `room` tokens, the rarest become [UNK]."""
    counts = Counter()
    for caption in captions:
        counts.update(tokenizer.normalizer.normalize_str(caption))
    kept = []
    for c in sorted(counts, key=lambda c: (-counts[c], c)):
        cost = len(tokenizer.pre_tokenizer.pre_tokenize_str(c)) and 1 + _continues(tokenizer, c)  # 0 for white space
        if cost and cost <= room:
            kept.append(c)
            room -= cost
    return sorted(kept)


def _continues(tokenizer: Tokenizer, c: str) -> bool:
    """Whether c can continue a word; punctuation and Chinese characters are words by themselves."""
    return len(tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str("a" + c))) == 1


def _from_vocab(text: str) -> Tokenizer:
    tokens = text.split("\n")  # not splitlines, since some vocabularies have unusual line breaks as tokens
    tokens = [token.rstrip("\r") for token in (tokens if tokens[-1] else tokens[:-1])]
    if len(set(tokens)) < len(tokens):
        raise ValueError("it has a token twice")
    cased = any(token != token.lower() for token in tokens if not token.startswith("["))
    return wordpiece(tokens, lowercase=not cased)
