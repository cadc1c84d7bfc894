"""LDMBertModel and BertTokenizer, as in diffusers' LDMTextToImagePipeline <-> the Text condition."""

import json
from pathlib import Path

import torch

from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import model_folder
from latentdiff.convert.diffusers.model_folder import Options
from latentdiff.convert.key_map import KeyMap, LayerKeys, Weights, build_key_map, shapes_of, to_src
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, Tokenizer, load_tokenizer, wordpiece
from latentdiff.layers import Attention
from latentdiff.training.files import write_json

FIELDS = {  # diffusers -> TextConfig
    "vocab_size": "vocab_size", "max_position_embeddings": "max_length", "encoder_layers": "depth", "d_model": "dim",
    "encoder_attention_heads": "heads", "head_dim": "head_dim",
}  # fmt: skip
DEFAULTS = {  # of diffusers, for options that config.json does not have
    "vocab_size": 30522, "max_position_embeddings": 77, "encoder_layers": 32, "encoder_ffn_dim": 5120,
    "encoder_attention_heads": 8, "head_dim": 64, "d_model": 1280, "pad_token_id": 0,
}  # fmt: skip
FIXED = {"activation_function": "gelu"}
IGNORED = (  # they concern training or a decoder, or have no effect
    "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "classifier_dropout", "init_std",
    "scale_embedding", "use_cache", "model_type", "architectures", "dtype", "torch_dtype", "transformers_version",
    "num_hidden_layers", "num_attention_heads", "hidden_size", "is_encoder_decoder", "return_dict",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "output_attentions", "output_hidden_states",
)  # fmt: skip
TOKENIZER_OPTIONS = {  # of a BertTokenizer
    "strip_accents": None, "tokenize_chinese_chars": True,
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
LENGTH = 77  # tokens that the pipeline pads captions to
LAYERS = {Attention: LayerKeys({"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"})}


# ---- the encoder


def text_key_map(encoder: TextCondition) -> KeyMap:
    prefixes = {"tokens": "model.embed_tokens", "positions": "model.embed_positions", "norm": "model.layer_norm"}
    for i in range(len(encoder.blocks)):
        dst, src = f"blocks.{i}", f"model.layers.{i}"
        prefixes |= {
            f"{dst}.norm1": f"{src}.self_attn_layer_norm", f"{dst}.attention": f"{src}.self_attn",
            f"{dst}.norm2": f"{src}.final_layer_norm", f"{dst}.mlp.0": f"{src}.fc1", f"{dst}.mlp.2": f"{src}.fc2",
        }  # fmt: skip
    return build_key_map(encoder, prefixes, LAYERS)


def from_diffusers(config: Options, state: Weights) -> tuple[TextConfig, Weights]:
    """config.json and weights of an LDMBertModel -> a Text condition and its weights, without the buffer `empty`."""
    o = model_folder.read_options(config, DEFAULTS, FIXED, IGNORED)
    if o["encoder_ffn_dim"] != 4 * o["d_model"]:
        raise UserError(f"encoder_ffn_dim is {o['encoder_ffn_dim']}; it must be {4 * o['d_model']}, four times d_model")
    text = TextConfig(mask_padding=False, **{dst: o[src] for src, dst in FIELDS.items()})  # the pipeline has no mask
    encoder = _meta_encoder(text)
    state = {name: value for name, value in state.items() if not name.startswith("to_logits.")}  # an unused head
    return text, model_folder.import_weights(state, text_key_map(encoder), shapes_of(encoder), "LDMBertModel")


def to_diffusers(text: TextConfig, weights: Weights, pad_id: int) -> tuple[Options, Weights]:
    """config.json and weights of an LDMBertModel; its unused head to_logits is zero."""
    options = {
        "architectures": ["LDMBertModel"], "model_type": "ldmbert", "num_hidden_layers": text.depth,
        "encoder_ffn_dim": 4 * text.dim, "activation_function": "gelu", "pad_token_id": pad_id, "dropout": 0.0,
    } | {src: getattr(text, dst) for src, dst in FIELDS.items()}  # fmt: skip
    head = {"to_logits.weight": torch.zeros(text.vocab_size, text.dim), "to_logits.bias": torch.zeros(text.vocab_size)}
    return options, to_src(weights, text_key_map(_meta_encoder(text))) | head


def _meta_encoder(text: TextConfig) -> TextCondition:
    with torch.device("meta"):
        return TextCondition(text, 0, torch.zeros(text.max_length, dtype=torch.long))


# ---- the tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder with tokenizer.json, or with the vocab.txt of a BertTokenizer."""
    path = folder / "tokenizer_config.json"
    config = model_folder.read_json(path) if path.exists() else {}
    kind = config.get("tokenizer_class", "BertTokenizer")
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(folder / "tokenizer.json")
    if kind.removesuffix("Fast") != "BertTokenizer":
        raise UserError(f"the tokenizer of {folder} is a {kind}; without tokenizer.json it must be a BertTokenizer")
    for name in ("strip_accents", "tokenize_chinese_chars"):
        if config.get(name, TOKENIZER_OPTIONS[name]) != TOKENIZER_OPTIONS[name]:
            raise UserError(f"{path} has {name}={config[name]!r}; it must be {TOKENIZER_OPTIONS[name]!r}")
    vocab = load_tokenizer(folder / "vocab.txt").get_vocab()
    return wordpiece(sorted(vocab, key=vocab.get), lowercase=config.get("do_lower_case", True))


def bert_vocabulary(tokenizer: CaptionTokenizer) -> tuple[list[str], bool] | None:
    """The tokens in the order of their ids, and do_lower_case, of the equivalent BertTokenizer; None without one."""
    vocab = tokenizer.tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    if any(special not in vocab for special in SPECIALS) or sorted(vocab.values()) != list(range(len(vocab))):
        return None
    for lowercase in (True, False):
        if _tokenization(wordpiece(tokens, lowercase)) == _tokenization(tokenizer.tokenizer):
            return tokens, lowercase
    return None


def _tokenization(tokenizer: Tokenizer) -> dict:
    """The settings that decide how captions without special tokens are tokenized."""
    content = json.loads(tokenizer.to_str())
    return {name: content[name] for name in ("model", "normalizer", "pre_tokenizer")}


def write_tokenizer(folder: Path, tokenizer: CaptionTokenizer) -> str:
    """Write the folder of a BertTokenizer, or of a class that reads tokenizer.json; returns the class."""
    folder.mkdir(parents=True)
    bert = bert_vocabulary(tokenizer)
    kind = "PreTrainedTokenizerFast" if bert is None else "BertTokenizer"
    options = TOKENIZER_OPTIONS | {"tokenizer_class": kind, "model_max_length": tokenizer.length}
    if bert is None:
        tokenizer.save(folder / "tokenizer.json")
    else:
        (folder / "vocab.txt").write_text("\n".join(bert[0]) + "\n", "utf-8")
        options |= {"do_lower_case": bert[1]}
    write_json(folder / "tokenizer_config.json", options)
    return kind
