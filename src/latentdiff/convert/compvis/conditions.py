"""The original release's conditions (cond_stage_config, conditioning_key) as ours."""

from typing import NamedTuple

from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.inpainting import MaskedConfig
from latentdiff.conditioning.semantic import SemanticConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.compvis.options import Options
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.masks import MasksConfig

IMAGENET = 1000  # classes; a table of one row more has one for "no class"
BERT = 30522  # words of bert-base-uncased


class Task(NamedTuple):
    """What a U-Net is told, and how it takes it."""

    conditions: tuple = ()
    fields: tuple = ()
    context_dim: int | None = None
    concat_channels: int = 0


def task_of(params: Options, kind: str, z_channels: int, factor: int) -> Task:
    """The task of a LatentDiffusion (or DDPM, which has none)."""
    stage = params.get("cond_stage_config", "__is_unconditional__")
    stage = "__is_unconditional__" if kind == "DDPM" or stage is None else stage
    unconditional = stage == "__is_unconditional__"
    key = params.get("conditioning_key", None) or ("concat" if params.get("concat_mode", True) else "crossattn")
    if unconditional and params.get("conditioning_key", None) != "adm":
        return Task()
    if key == "adm":
        return _vector(params.part("unet_config").part("params"))
    if stage == "__is_first_stage__":
        if key != "concat":
            raise UserError(
                f"cond_stage_config is the first stage under conditioning_key {key!r}; only concat is known"
            )
        return Task((MaskedConfig(),), (MasksConfig(),), None, z_channels + 1)
    stage = params.part("cond_stage_config")
    readers = {name: read for (k, name), read in STAGES.items() if k == key}
    if stage.target() not in readers:
        raise UserError(
            f"{stage.where}.target is {stage.target()} under conditioning_key {key!r}; "
            f"known are {', '.join(f'{name} under {k}' for k, name in STAGES)}"
        )
    return readers[stage.target()](stage.part("params", {}), params, factor)


def _vector(unet: Options) -> Task:
    """A table of labels inside the U-Net, as wide as its time embedding (conditioning_key adm)."""
    classes, width = unet.integer("num_classes"), 4 * unet.integer("model_channels")
    return Task((LabelConfig(classes=classes, dim=width, dropout=0.0, input="vector"),))


def _label(stage: Options, params: Options, factor: int) -> Task:
    rows, dim = stage.integer("n_classes", IMAGENET), stage.integer("embed_dim")
    hides = rows == IMAGENET + 1
    return Task((LabelConfig(classes=rows - hides, dim=dim, dropout=0.1 if hides else 0.0),), (), dim)


def _transformer(stage: Options, params: Options, factor: int) -> Task:
    """Text, or the boxes of a layout; always eight heads of 64, whatever the width."""
    dim, depth, length = stage.integer("n_embed"), stage.integer("n_layer"), stage.integer("max_seq_len", 77)
    vocab_size = stage.integer("vocab_size", BERT)
    if "bbox" not in str(params.get("cond_stage_key", "")):
        text = TextConfig(dim=dim, depth=depth, max_length=length, vocab_size=vocab_size, mask_padding=False)
        return Task((text,), (), dim)
    if length % 3 == 1:
        raise UserError(
            f"{stage.where}.max_seq_len is {length}; a layout has three tokens per box and perhaps two more"
        )
    objects, rest = divmod(length, 3)
    classes = min(601, vocab_size - 1)  # OpenImages
    layout = LayoutConfig(
        classes, objects, dim, depth, vocab_size=vocab_size, whole_image_tokens=rest == 2, dropout=0.0
    )
    return Task((layout,), (), dim)


def _map(stage: Options, params: Options, factor: int) -> Task:
    """One-hot maps made smaller; it is linear, so the order of its steps does not matter."""
    stage.same("method", "bilinear", "bilinear").same("multiplier", 0.5, 0.5).same("bias", False, False)
    if 2 ** stage.integer("n_stages", 1) != factor:
        raise UserError(f"{stage.where}.n_stages is {stage.get('n_stages', 1)}; the latent is {factor} times smaller")
    channels = stage.integer("out_channels")
    return Task((SemanticConfig(stage.integer("in_channels", 3), channels),), (), None, channels)


def _low_res(stage: Options, params: Options, factor: int) -> Task:
    key = params.get("cond_stage_key", "image")
    if key != "LR_image":
        raise UserError(f"cond_stage_key is {key!r} under an Identity; only LR_image is known")
    return Task((LowResConfig(),), (DegradeConfig(scale=factor),), None, 3)


STAGES = {  # conditioning_key, class
    ("crossattn", "ClassEmbedder"): _label,
    ("crossattn", "BERTEmbedder"): _transformer,
    ("crossattn", "TransformerEmbedder"): _transformer,
    ("concat", "SpatialRescaler"): _map,
    ("concat", "Identity"): _low_res,
}
