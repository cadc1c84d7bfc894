"""The conditions of the original release: cond_stage_config and conditioning_key <-> the conditions of a recipe."""

from collections.abc import Callable
from typing import Any, NamedTuple

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError, short_name
from latentdiff.convert.compvis.config_section import ConfigSection, refuse_export
from latentdiff.recipe import Condition

IMAGENET_CLASSES = 1000  # a label table with one more row has an empty class
OPENIMAGES_CLASSES = 601
BERT_VOCAB_SIZE = 30522  # of bert-base-uncased
UNCONDITIONAL = "__is_unconditional__"
PACKAGE = "ldm.modules.encoders.modules"


class UNetInputs(NamedTuple):
    """What a condition adds to the inputs of the U-Net."""

    context_dim: int | None = None
    concat_channels: int = 0
    num_classes: int | None = None  # rows of a label table inside the original's U-Net


def unet_inputs(condition: Condition | None, z_channels: int) -> UNetInputs:
    match condition:
        case None:
            return UNetInputs()
        case LabelConfig(input="vector"):
            return UNetInputs(num_classes=_label_rows(condition))
        case SemanticConfig():
            return UNetInputs(concat_channels=condition.channels)
        case LowResConfig():
            return UNetInputs(concat_channels=3)
        case MaskedConfig():
            return UNetInputs(concat_channels=z_channels + 1)
    return UNetInputs(context_dim=condition.dim)


def _label_rows(condition: LabelConfig) -> int:
    return condition.classes + (condition.dropout > 0)


# ---- import


def read_condition(params: ConfigSection, kind: str, factor: int) -> Condition | None:
    """The condition of a LatentDiffusion, or None; a DDPM has none."""
    stage = params.get("cond_stage_config", None)
    key = params.get("conditioning_key", None) or ("concat" if params.get("concat_mode", True) else "crossattn")
    if key == "adm":
        unet = params.section("unet_config").section("params")  # its label table is as wide as the time embedding
        width = 4 * unet.integer("model_channels")
        return LabelConfig(classes=unet.integer("num_classes"), dim=width, dropout=0.0, input="vector")
    if kind == "DDPM" or stage in (None, UNCONDITIONAL):
        return None
    if stage == "__is_first_stage__":
        if key != "concat":
            params.refuse("conditioning_key", "it must be concat if cond_stage_config is the first stage")
        return MaskedConfig()
    stage = params.section("cond_stage_config")
    if (key, stage.target()) not in READERS:
        allowed = ", ".join(f"{target} with {key}" for key, target in READERS)
        raise UserError(f"{stage.path}.target is {stage.target()} with conditioning_key {key}; it must be {allowed}")
    return READERS[key, stage.target()](stage.section("params", {}), params, factor)


def _read_label(stage: ConfigSection, params: ConfigSection, factor: int) -> LabelConfig:
    rows = stage.integer("n_classes", IMAGENET_CLASSES)
    has_empty = rows == IMAGENET_CLASSES + 1
    dropout = 0.1 if has_empty else 0.0
    return LabelConfig(classes=rows - has_empty, dim=stage.integer("embed_dim"), dropout=dropout)


def _read_transformer(stage: ConfigSection, params: ConfigSection, factor: int) -> TextConfig | LayoutConfig:
    """Text, or the boxes of a layout; always with 8 heads of 64."""
    shape = {"dim": stage.integer("n_embed"), "depth": stage.integer("n_layer")}
    shape["vocab_size"] = stage.integer("vocab_size", BERT_VOCAB_SIZE)
    length = stage.integer("max_seq_len", 77)
    if "bbox" not in str(params.get("cond_stage_key", "")):
        return TextConfig(max_length=length, mask_padding=False, **shape)
    objects, rest = divmod(length, 3)
    if rest == 1:
        stage.refuse("max_seq_len", "a layout has three tokens per box, and two more or none")
    classes = min(OPENIMAGES_CLASSES, shape["vocab_size"] - 1)
    return LayoutConfig(classes, objects, whole_image_tokens=rest == 2, dropout=0.0, **shape)


def _read_semantic(stage: ConfigSection, params: ConfigSection, factor: int) -> SemanticConfig:
    """A projection of a downsampled one-hot map; both are linear, so their order does not matter."""
    for name, value in {"method": "bilinear", "multiplier": 0.5, "bias": False}.items():
        stage.require(name, value, default=value)
    if 2 ** stage.integer("n_stages", 1) != factor:
        stage.refuse("n_stages", f"it must downsample by {factor}, the factor of the autoencoder")
    return SemanticConfig(stage.integer("in_channels", 3), stage.integer("out_channels"))


def _read_low_res(stage: ConfigSection, params: ConfigSection, factor: int) -> LowResConfig:
    if params.get("cond_stage_key", "image") != "LR_image":
        params.refuse("cond_stage_key", "it must be LR_image if cond_stage_config is an Identity")
    return LowResConfig()


READERS: dict[tuple[str, str], Callable[..., Condition]] = {  # (conditioning_key, class) -> reader
    ("crossattn", "ClassEmbedder"): _read_label,
    ("crossattn", "BERTEmbedder"): _read_transformer,
    ("crossattn", "TransformerEmbedder"): _read_transformer,
    ("concat", "SpatialRescaler"): _read_semantic,
    ("concat", "Identity"): _read_low_res,
}


# ---- export


def write_condition(c: Condition | None, factor: int) -> dict[str, Any]:
    """The inverse of read_condition: cond_stage_config, cond_stage_key and conditioning_key."""
    if getattr(c, "mask_padding", False):
        refuse_export("mask_padding=true (its text encoder attends to padding; train with mask_padding=false)")
    if getattr(c, "every_pixel", False):
        refuse_export("every_pixel=true (its inpainting reads one pixel of the mask per latent position)")
    if isinstance(c, (TextConfig, LayoutConfig)) and (c.heads, c.head_dim) != (8, 64):
        refuse_export(f"a text encoder with {c.heads} heads of {c.head_dim} (it always has 8 of 64)")
    match c:
        case None:
            return {"cond_stage_config": UNCONDITIONAL}
        case LabelConfig(input="vector"):
            return _write_stage("adm", "class_label", "torch.nn.Identity", trainable=False)
        case LabelConfig():
            params = {"embed_dim": c.dim, "n_classes": _label_rows(c), "key": "class_label"}
            return _write_stage("crossattn", "class_label", f"{PACKAGE}.ClassEmbedder", params)
        case TextConfig():
            return _write_stage("crossattn", "caption", f"{PACKAGE}.BERTEmbedder", _write_bert(c, c.max_length))
        case LayoutConfig():
            params = _write_bert(c, 3 * c.objects + 2 * c.whole_image_tokens) | {"use_tokenizer": False}
            return _write_stage("crossattn", "coordinates_bbox", f"{PACKAGE}.BERTEmbedder", params)
        case SemanticConfig():
            params = {"n_stages": factor.bit_length() - 1, "in_channels": c.classes, "out_channels": c.channels}
            return _write_stage("concat", "segmentation", f"{PACKAGE}.SpatialRescaler", params)
        case LowResConfig():
            return _write_stage("concat", "LR_image", "torch.nn.Identity", trainable=False)
        case MaskedConfig():
            stage = _write_stage("concat", "masked_image", "", trainable=False)
            return stage | {"cond_stage_config": "__is_first_stage__"}
    refuse_export(f"conditions={short_name(type(c))}")


def _write_bert(c: TextConfig | LayoutConfig, length: int) -> dict[str, Any]:
    return {"n_embed": c.dim, "n_layer": c.depth, "vocab_size": c.vocab_size, "max_seq_len": length}


def _write_stage(
    key: str, field: str, target: str, params: dict | None = None, trainable: bool = True
) -> dict[str, Any]:
    stage = {"target": target} | ({"params": params} if params else {})
    return {
        "conditioning_key": key, "cond_stage_key": field, "cond_stage_trainable": trainable, "cond_stage_config": stage,
    }  # fmt: skip
