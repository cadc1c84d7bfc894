"""The conditions of the original release: cond_stage_config and conditioning_key <-> the conditions of a recipe."""

from typing import Any, NamedTuple

from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError, short_name
from latentdiff.convert.compvis.config_section import ConfigSection, Field, refuse_export, write_fields
from latentdiff.recipe import Condition

IMAGENET_CLASSES = 1000  # a label table with one more row has an empty class
OPENIMAGES_CLASSES = 601
TRANSFORMER_FIELDS = (
    Field("n_embed", "dim", int),
    Field("n_layer", "depth", int),
    Field("vocab_size", "vocab_size", int, 30522),
)
UNCONDITIONAL, FIRST_STAGE = "__is_unconditional__", "__is_first_stage__"  # special values of cond_stage_config
ALLOWED = {  # conditioning_key -> classes of cond_stage_config
    "crossattn": ("ClassEmbedder", "BERTEmbedder", "TransformerEmbedder"),
    "concat": ("SpatialRescaler", "Identity"),
}


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


def read_condition(params: ConfigSection, model: str, factor: int) -> Condition | None:
    """The condition of a model (LatentDiffusion or DDPM), or None."""
    stage = params.get("cond_stage_config", None)
    key = params.get("conditioning_key", None) or ("concat" if params.get("concat_mode", True) else "crossattn")
    if key == "adm":
        unet = params.section("unet_config").section("params")
        width = 4 * unet.get("model_channels", kind=int)  # that of the time embedding
        return LabelConfig(classes=unet.get("num_classes", kind=int), dim=width, dropout=0.0, input="vector")
    if model == "DDPM" or stage in (None, UNCONDITIONAL):
        return None
    if stage == FIRST_STAGE:
        if key != "concat":
            params.refuse("conditioning_key", "it must be concat if cond_stage_config is the first stage")
        return MaskedConfig()
    stage = params.section("cond_stage_config")
    target, stage_params = stage.target(), stage.section("params", {})
    if target not in ALLOWED.get(key, ()):
        allowed = "; ".join(f"{', '.join(targets)} with {key}" for key, targets in ALLOWED.items())
        raise UserError(f"{stage.path}.target is {target} with conditioning_key {key}; it must be {allowed}")
    if target == "ClassEmbedder":
        rows = stage_params.get("n_classes", IMAGENET_CLASSES, int)
        dropout, classes = (0.1, IMAGENET_CLASSES) if rows == IMAGENET_CLASSES + 1 else (0.0, rows)
        return LabelConfig(classes=classes, dim=stage_params.get("embed_dim", kind=int), dropout=dropout)
    if target == "SpatialRescaler":
        return _read_semantic(stage_params, factor)
    if target == "Identity":
        if params.get("cond_stage_key", "image") != "LR_image":
            params.refuse("cond_stage_key", "it must be LR_image if cond_stage_config is an Identity")
        return LowResConfig()
    return _read_transformer(stage_params, is_layout="bbox" in str(params.get("cond_stage_key", "")))


def _read_semantic(stage: ConfigSection, factor: int) -> SemanticConfig:
    """A projection of a downsampled one-hot map; both are linear, so their order does not matter."""
    for name, value in {"method": "bilinear", "multiplier": 0.5, "bias": False}.items():
        stage.require(name, value, default=value)
    if 2 ** stage.get("n_stages", 1, int) != factor:
        stage.refuse("n_stages", f"it must downsample by {factor}, the factor of the autoencoder")
    return SemanticConfig(stage.get("in_channels", 3, int), stage.get("out_channels", kind=int))


def _read_transformer(stage: ConfigSection, is_layout: bool) -> TextConfig | LayoutConfig:
    """Text, or the boxes of a layout; always with 8 heads of 64."""
    fields, length = stage.fields(TRANSFORMER_FIELDS), stage.get("max_seq_len", 77, int)
    if not is_layout:
        return TextConfig(max_length=length, mask_padding=False, **fields)
    objects, rest = divmod(length, 3)
    if rest == 1:
        stage.refuse("max_seq_len", "a layout has three tokens per box, and two more or none")
    classes = min(OPENIMAGES_CLASSES, fields["vocab_size"] - 1)
    return LayoutConfig(classes, objects, whole_image_tokens=rest == 2, dropout=0.0, **fields)


def write_condition(c: Condition | None, factor: int) -> dict[str, Any]:
    """The inverse of read_condition: cond_stage_config, cond_stage_key and conditioning_key."""
    if getattr(c, "mask_padding", False):
        refuse_export("mask_padding=true (its text encoder attends to padding; train with mask_padding=false)")
    if getattr(c, "every_pixel", False):
        refuse_export("every_pixel=true (its inpainting reads one pixel of the mask per latent position)")
    if isinstance(c, (TextConfig, LayoutConfig)) and (c.heads, c.head_dim) != (8, 64):
        refuse_export(f"a text encoder with {c.heads} heads of {c.head_dim} (it always has 8 of 64)")
    identity, encoders = "torch.nn.Identity", "ldm.modules.encoders.modules"
    match c:
        case None:
            return {"cond_stage_config": UNCONDITIONAL}
        case MaskedConfig():
            return _write_stage("concat", "masked_image") | {"cond_stage_config": FIRST_STAGE}
        case LabelConfig(input="vector"):
            return _write_stage("adm", "class_label", identity)
        case LowResConfig():
            return _write_stage("concat", "LR_image", identity)
        case LabelConfig():
            params = {"embed_dim": c.dim, "n_classes": _label_rows(c), "key": "class_label"}
            return _write_stage("crossattn", "class_label", f"{encoders}.ClassEmbedder", params)
        case TextConfig():
            params = write_fields(TRANSFORMER_FIELDS, c) | {"max_seq_len": c.max_length}
            return _write_stage("crossattn", "caption", f"{encoders}.BERTEmbedder", params)
        case LayoutConfig():
            params = {"max_seq_len": 3 * c.objects + 2 * c.whole_image_tokens, "use_tokenizer": False}
            params |= write_fields(TRANSFORMER_FIELDS, c)
            return _write_stage("crossattn", "coordinates_bbox", f"{encoders}.BERTEmbedder", params)
        case SemanticConfig():
            params = {"n_stages": factor.bit_length() - 1, "in_channels": c.classes, "out_channels": c.channels}
            return _write_stage("concat", "segmentation", f"{encoders}.SpatialRescaler", params)
    refuse_export(f"conditions={short_name(type(c))}")


def _write_stage(key: str, field: str, target: str = "", params: dict[str, Any] | None = None) -> dict[str, Any]:
    stage = {"target": target} | ({"params": params} if params else {})
    names = ("conditioning_key", "cond_stage_key", "cond_stage_trainable", "cond_stage_config")
    return dict(zip(names, (key, field, params is not None, stage)))
