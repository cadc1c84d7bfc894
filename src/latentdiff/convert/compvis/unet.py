"""The original release's U-Net config as ours."""

from latentdiff.config import UserError
from latentdiff.convert.compvis.conditions import Task
from latentdiff.convert.compvis.options import Options
from latentdiff.diffusion.unet import UNetConfig

# Weights do not tell how many heads attend to a context, and the release's code changed its rule: these three were
# trained when num_head_channels did not reach that attention, with one head of full width
ONE_HEAD = {  # channels, channel_mult, context_dim, depth; heads of 32 channels by today's rule
    (256, (1, 2, 4), 512, 1): "cin256",
    (192, (1, 2, 3, 5), 640, 1): "text2img256",
    (128, (1, 2, 3, 4), 512, 3): "layout2img-openimages256",
}


def unet_of(given: Options, task: Task, z_channels: int) -> tuple[UNetConfig, bool]:
    """unet_config -> ours, and whether the rows of qkv are in the new order."""
    if given.target() != "UNetModel":
        raise UserError(f"{given.where}.target is {given.target()}; only UNetModel is known")
    p = given.part("params")
    _refuse(p, task, z_channels)
    mult, context_dim = p.integers("channel_mult", (1, 2, 4, 8)), task.context_dim
    depth = p.integer("transformer_depth", 1) if context_dim else 1
    one, each = _heads(p, (p.integer("model_channels"), mult, context_dim, depth))
    config = UNetConfig(
        channels=p.integer("model_channels"),
        channel_mult=mult,
        num_res_blocks=p.integer("num_res_blocks"),
        # factors of downsampling, of which those that no level has are without effect
        attention_levels=tuple(i for i in range(len(mult)) if 2**i in p.integers("attention_resolutions")),
        num_heads=one,
        head_channels=each,
        transformer_depth=depth,
        dropout=p.number("dropout", 0.0),
        scale_shift_norm=bool(p.get("use_scale_shift_norm", False)),
        resblock_updown=bool(p.get("resblock_updown", False)),
    )
    return config, bool(p.get("use_new_attention_order", False)) and not context_dim


def _heads(p: Options, shape: tuple) -> tuple[int, int]:
    """num_heads and head_channels; the latter is 0 where the former counts."""
    heads, each = p.integer("num_heads", -1), p.integer("num_head_channels", -1)
    if heads == each == -1:
        raise UserError(f"{p.where} has neither num_heads nor num_head_channels; the weights do not tell")
    if p.get("num_heads_upsample", -1) not in (-1, heads):
        raise UserError(f"{p.where}.num_heads_upsample is {p.get('num_heads_upsample')}; it must be as num_heads")
    if each != -1 and shape in ONE_HEAD and each == 32 and heads == -1 and "legacy" not in p.values:
        print(
            f"heads: one of full width, as {ONE_HEAD[shape]} was trained; today's code would read its config as heads "
            f"of {each} channels (unet.num_heads, unet.head_channels in recipe.json)"
        )
        return 1, 0
    return (8, each) if each != -1 else (heads, 0)


def _refuse(p: Options, task: Task, z_channels: int) -> None:
    """What our U-Net does not have, and numbers that do not fit the rest of the config."""
    p.same("dims", 2, 2).same("conv_resample", True, True).same("n_embed", None, None)
    p.same("in_channels", z_channels + task.concat_channels).same("out_channels", z_channels)
    p.same("use_spatial_transformer", task.context_dim is not None, False)
    if task.context_dim is not None:
        context = p.get("context_dim")
        if context not in (task.context_dim, [task.context_dim]):
            raise UserError(f"{p.where}.context_dim is {context}; the condition is {task.context_dim} wide")
    vector = any(getattr(condition, "door", "") == "vector" for condition in task.conditions)
    if (p.get("num_classes", None) is not None) != vector:
        raise UserError(f"{p.where}.num_classes is {p.get('num_classes', None)}, which belongs to conditioning_key adm")
