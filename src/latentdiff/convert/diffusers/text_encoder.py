"""LDMBertModel and BertTokenizer, as diffusers' LDMTextToImagePipeline has them, <-> our Text condition."""

import json
from pathlib import Path

import torch
from torch import nn

from latentdiff.conditioning.text import TextCondition, TextConfig
from latentdiff.config import UserError
from latentdiff.convert.diffusers import folder as folders
from latentdiff.convert.diffusers.folder import Options, Place, Weights
from latentdiff.data.tokenizer import SPECIALS, CaptionTokenizer, Tokenizer, load_tokenizer, wordpiece
from latentdiff.training import checkpoint

READ = {  # what config.json leaves out has these values
    "vocab_size": 30522, "max_position_embeddings": 77, "encoder_layers": 32, "encoder_ffn_dim": 5120,
    "encoder_attention_heads": 8, "head_dim": 64, "d_model": 1280, "pad_token_id": 0,
}  # fmt: skip
FIXED = {"activation_function": "gelu"}
IGNORED = (  # of training, of a decoder, or read by nothing
    "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "classifier_dropout", "init_std",
    "scale_embedding", "use_cache", "model_type", "architectures", "dtype", "torch_dtype", "transformers_version",
    "num_hidden_layers", "num_attention_heads", "hidden_size", "is_encoder_decoder", "return_dict",
    "tie_word_embeddings", "bos_token_id", "eos_token_id", "output_attentions", "output_hidden_states",
)  # fmt: skip
NAMES = {  # ours -> theirs
    "tokens": "embed_tokens", "positions": "embed_positions", "norm": "layer_norm", "norm1": "self_attn_layer_norm",
    "norm2": "final_layer_norm", "attention": "self_attn", "q": "q_proj", "k": "k_proj", "v": "v_proj",
    "out": "out_proj", "blocks": "layers",
}  # fmt: skip
TOKENIZER = {  # what transformers is told of a BertTokenizer, beside its class and its vocab.txt
    "strip_accents": None, "tokenize_chinese_chars": True,
    "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]", "mask_token": "[MASK]",
}  # fmt: skip
LENGTH = 77  # tokens that the pipeline pads to


# ---- the encoder


def from_theirs(config: Options, state: Weights) -> tuple[TextConfig, Weights]:
    """config.json and weights of an LDMBertModel -> our condition and its weights, but for the tokens of ""."""
    o = folders.options(config, READ, FIXED, IGNORED)
    if o["encoder_ffn_dim"] != 4 * o["d_model"]:
        raise UserError(f"LDMBertModel has encoder_ffn_dim={o['encoder_ffn_dim']}; it must be four times d_model, "
                        f"{4 * o['d_model']}")  # fmt: skip
    text = TextConfig(
        dim=o["d_model"],
        depth=o["encoder_layers"],
        heads=o["encoder_attention_heads"],
        head_dim=o["head_dim"],
        max_length=o["max_position_embeddings"],
        vocab_size=o["vocab_size"],
        mask_padding=False,  # the pipeline gives no mask
    )
    network = _network(text)
    shapes = {name: value.shape for name, value in network.state_dict().items()}
    read = {name: value for name, value in state.items() if not name.startswith("to_logits.")}  # which nothing reads
    return text, folders.from_theirs(read, _places(network), shapes, "LDMBertModel")


def to_theirs(text: TextConfig, weights: Weights, pad_id: int) -> tuple[Options, Weights]:
    """config.json and weights of an LDMBertModel, with a to_logits of zeros, since it wants one."""
    options = {
        "architectures": ["LDMBertModel"], "model_type": "ldmbert", "vocab_size": text.vocab_size,
        "max_position_embeddings": text.max_length, "encoder_layers": text.depth, "num_hidden_layers": text.depth,
        "encoder_ffn_dim": 4 * text.dim, "encoder_attention_heads": text.heads, "head_dim": text.head_dim,
        "d_model": text.dim, "activation_function": "gelu", "pad_token_id": pad_id, "dropout": 0.0,
    }  # fmt: skip
    logits = {"to_logits.weight": torch.zeros(text.vocab_size, text.dim)}
    logits["to_logits.bias"] = torch.zeros(text.vocab_size)
    return options, folders.to_theirs(weights, _places(_network(text))) | logits


def _network(text: TextConfig) -> nn.Module:
    with torch.device("meta"):
        return TextCondition(text, 0, torch.zeros(text.max_length, dtype=torch.long))


def _places(network: nn.Module) -> dict[str, Place]:
    places = {}
    for name, _ in network.named_parameters():
        parts = name.replace("mlp.0", "fc1").replace("mlp.2", "fc2").split(".")
        places[name] = Place((".".join(["model", *(NAMES.get(part, part) for part in parts)]),))
    return places


# ---- the tokenizer


def read_tokenizer(folder: Path) -> Tokenizer:
    """A BertTokenizer's folder: vocab.txt, or tokenizer.json."""
    config = folders.read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    kind = config.get("tokenizer_class", "BertTokenizer")
    if (folder / "tokenizer.json").exists():
        return load_tokenizer(folder / "tokenizer.json")
    if kind.removesuffix("Fast") != "BertTokenizer":
        raise UserError(f"{folder} holds a {kind}; without a tokenizer.json it must be a BertTokenizer")
    if config.get("strip_accents") is not None or config.get("tokenize_chinese_chars", True) is not True:
        raise UserError(f"{folder} sets strip_accents or tokenize_chinese_chars; only their defaults are known")
    vocab = load_tokenizer(folder / "vocab.txt").get_vocab()
    return wordpiece(sorted(vocab, key=vocab.get), lowercase=config.get("do_lower_case", True))


def vocabulary(tokenizer: CaptionTokenizer) -> tuple[list[str], bool] | None:
    """The tokens by id and whether it lowers case, if a BertTokenizer can read as it does; else None."""
    vocab = tokenizer.tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    if any(special not in vocab for special in SPECIALS) or sorted(vocab.values()) != list(range(len(vocab))):
        return None
    for lowercase in (True, False):
        if _reading(wordpiece(tokens, lowercase)) == _reading(tokenizer.tokenizer):
            return tokens, lowercase
    return None


def _reading(tokenizer: Tokenizer) -> dict:
    """What a tokenizer does to a caption in which no special token is spelled out."""
    content = json.loads(tokenizer.to_str())
    return {name: content[name] for name in ("model", "normalizer", "pre_tokenizer")}


def write_tokenizer(folder: Path, tokenizer: CaptionTokenizer) -> str:
    """The folder of a BertTokenizer, or of another that reads a tokenizer.json; its class."""
    folder.mkdir(parents=True)
    bert = vocabulary(tokenizer)
    kind = "PreTrainedTokenizerFast" if bert is None else "BertTokenizer"
    options = TOKENIZER | {"tokenizer_class": kind, "model_max_length": tokenizer.length}
    if bert is None:
        tokenizer.save(folder / "tokenizer.json")
    else:
        (folder / "vocab.txt").write_text("\n".join(bert[0]) + "\n", "utf-8")
        options |= {"do_lower_case": bert[1]}
    checkpoint.write_json(folder / "tokenizer_config.json", options)
    return kind
