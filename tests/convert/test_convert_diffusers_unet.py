"""UNet2DConditionModel and UNet2DModel of diffusers compute the same after import and after export."""

import json

import pytest
import torch
from diffusers_models import TOLERANCE, diffusers, exported, imported, randomised, relative_error, unet_options

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.convert.diffusers.import_folder import import_folder

CONDITION_MODELS = {
    "Stable Diffusion 1": unet_options(
        8, 16, 16, attention=(0, 1), cross_attention_dim=12, attention_head_dim=4, layers_per_block=2
    ),
    "Stable Diffusion 2": unet_options(
        8, 16, 32, attention=(0, 1), cross_attention_dim=12, attention_head_dim=[2, 4, 8], use_linear_projection=True
    ),
    "inpainting": unet_options(8, 8, attention=(0,), in_channels=9, cross_attention_dim=5, attention_head_dim=1),
    "classes, deep, scale and shift": unet_options(
        12,
        24,
        attention=(1,),
        cross_attention_dim=7,
        attention_head_dim=3,
        num_class_embeds=5,
        transformer_layers_per_block=2,
        resnet_time_scale_shift="scale_shift",
        norm_num_groups=6,
    ),
    "sines before cosines": unet_options(
        8, 16, attention=(0, 1), cross_attention_dim=6, attention_head_dim=2, flip_sin_to_cos=False
    ),
}
MODELS = {
    "CelebA-HQ": unet_options(8, 16, 24, attention=(1, 2), kind="Attn", attention_head_dim=8, layers_per_block=2),
    "super-resolution": unet_options(8, 16, attention=(1,), kind="Attn", in_channels=6, attention_head_dim=None),
    "classes, one level": unet_options(
        8, attention=(0,), kind="Attn", attention_head_dim=4, num_class_embeds=3, in_channels=4, out_channels=4
    ),
    "residual blocks change the size": unet_options(
        8,
        16,
        16,
        attention=(1,),
        kind="Attn",
        plain="Resnet",
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
        attn_norm_num_groups=4,
    ),
}
T, LABELS = torch.tensor([3, 712]), torch.tensor([0, 2])


def inputs(config):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, config["in_channels"], 8, 12, generator=generator)
    return x, torch.randn(2, 6, config.get("cross_attention_dim", 1), generator=generator)


def output_of(model, x, context):
    extra = {"class_labels": LABELS} if model.config["num_class_embeds"] else {}
    return model(x, T, *([context] if "cross_attention_dim" in model.config else []), **extra).sample


def output_of_run(pipeline, config, x, context):
    """The output of an imported U-Net, with the condition from the conditioner of the run."""
    z, concat = x[:, : config["out_channels"]], x[:, config["out_channels"] :]
    batch = {"context": context, "label": LABELS, "concat": concat}
    return pipeline.unet(z, T, pipeline.conditioner(batch, torch.zeros(2, dtype=torch.bool)))


@torch.no_grad()
@pytest.mark.parametrize("options", CONDITION_MODELS.values(), ids=CONDITION_MODELS)
def test_a_unet_with_cross_attention_computes_the_same(options, tmp_path):
    check_import_and_export(diffusers.UNet2DConditionModel, options, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_a_unet_without_cross_attention_computes_the_same(options, tmp_path):
    check_import_and_export(diffusers.UNet2DModel, options, tmp_path)


def check_import_and_export(kind, options, tmp_path):
    model = randomised(kind(**options))
    pipeline, (x, context) = imported(model, tmp_path), inputs(model.config)
    expected = output_of(model, x, context)
    assert relative_error(output_of_run(pipeline, model.config, x, context), expected) < TOLERANCE
    again = kind.from_pretrained(exported(tmp_path) / "unet").eval()
    assert relative_error(output_of(again, x, context), expected) < TOLERANCE


@torch.no_grad()
def test_another_number_of_heads_changes_the_output(tmp_path):
    model = randomised(diffusers.UNet2DConditionModel(**CONDITION_MODELS["Stable Diffusion 1"]))
    pipeline, (x, context) = imported(model, tmp_path), inputs(model.config)
    for layer in pipeline.unet.modules():
        if hasattr(layer, "heads"):
            layer.heads = 2
    output = output_of_run(pipeline, model.config, x, context)
    assert relative_error(output, output_of(model, x, context)) > 10 * TOLERANCE


@torch.no_grad()
def test_a_projected_class_embedding_becomes_the_vector_input(tmp_path):
    options = CONDITION_MODELS["Stable Diffusion 1"] | {"class_embed_type": "simple_projection"}
    options |= {"projection_class_embeddings_input_dim": 7}
    model, vector = randomised(diffusers.UNet2DConditionModel(**options)), torch.randn(2, 7)
    pipeline, (x, context) = imported(model, tmp_path), inputs(model.config)
    expected = model(x, T, context, class_labels=vector).sample
    assert relative_error(pipeline.unet(x, T, Cond(context=context, vector=vector)), expected) < TOLERANCE
    again = diffusers.UNet2DConditionModel.from_pretrained(exported(tmp_path) / "unet").eval()
    assert relative_error(again(x, T, context, class_labels=vector).sample, expected) < TOLERANCE


REFUSED = {
    diffusers.UNet2DConditionModel: (CONDITION_MODELS["Stable Diffusion 1"], [
        {"act_fn": "gelu"}, {"freq_shift": 1}, {"center_input_sample": True}, {"class_embed_type": "timestep"},
        {"only_cross_attention": True}, {"addition_embed_type": "text"}, {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"}, {"time_embedding_dim": 99}, {"encoder_hid_dim": 3},
        {"attention_head_dim": [1, 4, 2]}, {"cross_attention_dim": [12, 3, 12]}, {"layers_per_block": [1, 2, 1]},
        {"transformer_layers_per_block": [1, 2, 3]}, {"block_out_channels": [8, 12, 16]}, {"norm_num_groups": None},
        {"up_block_types": ["CrossAttnUpBlock2D"] * 3}, {"resnet_time_scale_shift": "ada_group"}, {"new_thing": 1},
    ]),
    diffusers.UNet2DModel: (MODELS["CelebA-HQ"], [
        {"add_attention": False}, {"mid_block_type": None}, {"time_embedding_type": "fourier"},
        {"attn_norm_num_groups": 2}, {"downsample_padding": 0}, {"mid_block_scale_factor": 1.4},
        {"resnet_time_scale_shift": "scale_shift"}, {"down_block_types": ["SkipDownBlock2D"] * 3}, {"out_channels": 6},
    ]),
}  # fmt: skip
CHANGES = [(kind, options, change) for kind, (options, changes) in REFUSED.items() for change in changes]


@pytest.mark.parametrize("kind, options, change", CHANGES, ids=[f"{k.__name__} {c}" for k, _, c in CHANGES])
def test_an_option_that_cannot_be_converted_is_refused_by_name(kind, options, change, tmp_path):
    with torch.device("meta"):
        config = dict(kind(**options).config)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"_class_name": kind.__name__} | change))
    torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / "model" / "diffusion_pytorch_model.bin")
    name = next(iter(change)) if change != {"resnet_time_scale_shift": "scale_shift"} else "attn_norm_num_groups"
    with pytest.raises(UserError, match=name):
        import_folder(str(tmp_path / "model"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
