"""UNet2DConditionModel and UNet2DModel of diffusers and our U-Net compute the same, both ways."""

import json

import pytest
import torch
from theirs import TOLERANCE, blocks, diffusers, exported, imported, off, randomised

from latentdiff.conditioning.cond import Cond
from latentdiff.config import UserError
from latentdiff.convert.diffusers.import_ import import_folder

TEXTS = {
    "Stable Diffusion 1": blocks(8, 16, 16, attend=(0, 1), cross_attention_dim=12, attention_head_dim=4,
                                 layers_per_block=2),
    "Stable Diffusion 2": blocks(8, 16, 32, attend=(0, 1), cross_attention_dim=12, attention_head_dim=[2, 4, 8],
                                 use_linear_projection=True),
    "inpainting": blocks(8, 8, attend=(0,), in_channels=9, cross_attention_dim=5, attention_head_dim=1),
    "classes, deep, scale and shift": blocks(
        12, 24, attend=(1,), cross_attention_dim=7, attention_head_dim=3, num_class_embeds=5,
        transformer_layers_per_block=2, resnet_time_scale_shift="scale_shift", norm_num_groups=6),
    "sines before cosines": blocks(8, 16, attend=(0, 1), cross_attention_dim=6, attention_head_dim=2,
                                   flip_sin_to_cos=False),
}  # fmt: skip
PLAINS = {
    "CelebA-HQ": blocks(8, 16, 24, attend=(1, 2), kind="Attn", attention_head_dim=8, layers_per_block=2),
    "super-resolution": blocks(8, 16, attend=(1,), kind="Attn", in_channels=6, attention_head_dim=None),
    "classes, one level": blocks(8, attend=(0,), kind="Attn", attention_head_dim=4, num_class_embeds=3, in_channels=4,
                                 out_channels=4),
    "residual blocks change the size": blocks(
        8, 16, 16, attend=(1,), kind="Attn", plain="Resnet", downsample_type="resnet", upsample_type="resnet",
        resnet_time_scale_shift="scale_shift", attn_norm_num_groups=4),
}  # fmt: skip
T, LABELS = torch.tensor([3, 712]), torch.tensor([0, 2])


def inputs(config):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, config["in_channels"], 8, 12, generator=generator)
    return x, torch.randn(2, 6, config.get("cross_attention_dim", 1), generator=generator)


def ask(theirs, x, context):
    extra = {"class_labels": LABELS} if theirs.config["num_class_embeds"] else {}
    return theirs(x, T, *([context] if "cross_attention_dim" in theirs.config else []), **extra).sample


def answer(ours, config, x, context):
    """What our run's U-Net says, with the condition as its conditioner makes it of the batch."""
    z, concat = x[:, : config["out_channels"]], x[:, config["out_channels"] :]
    batch = {"context": context, "label": LABELS, "concat": concat}
    return ours.unet(z, T, ours.conditioner(batch, torch.zeros(2, dtype=torch.bool)))


@torch.no_grad()
@pytest.mark.parametrize("options", TEXTS.values(), ids=TEXTS)
def test_a_unet_with_cross_attention_is_the_same_here_and_there(options, tmp_path):
    there_and_back(diffusers.UNet2DConditionModel, options, tmp_path)


@torch.no_grad()
@pytest.mark.parametrize("options", PLAINS.values(), ids=PLAINS)
def test_a_unet_without_is_the_same_here_and_there(options, tmp_path):
    there_and_back(diffusers.UNet2DModel, options, tmp_path)


def there_and_back(kind, options, tmp_path):
    theirs = randomised(kind(**options))
    ours, (x, context) = imported(theirs, tmp_path), inputs(theirs.config)
    wanted = ask(theirs, x, context)
    assert off(answer(ours, theirs.config, x, context), wanted) < TOLERANCE
    again = kind.from_pretrained(exported(tmp_path) / "unet").eval()
    assert off(ask(again, x, context), wanted) < TOLERANCE


@torch.no_grad()
def test_another_count_of_heads_would_be_seen(tmp_path):
    theirs = randomised(diffusers.UNet2DConditionModel(**TEXTS["Stable Diffusion 1"]))
    ours, (x, context) = imported(theirs, tmp_path), inputs(theirs.config)
    for layer in ours.unet.modules():
        if hasattr(layer, "heads"):
            layer.heads = 2
    assert off(answer(ours, theirs.config, x, context), ask(theirs, x, context)) > 10 * TOLERANCE


@torch.no_grad()
def test_a_vector_that_diffusers_projects_goes_through_our_third_door(tmp_path):
    options = TEXTS["Stable Diffusion 1"] | {"class_embed_type": "simple_projection"}
    options |= {"projection_class_embeddings_input_dim": 7}
    theirs, vector = randomised(diffusers.UNet2DConditionModel(**options)), torch.randn(2, 7)
    ours, (x, context) = imported(theirs, tmp_path), inputs(theirs.config)
    wanted = theirs(x, T, context, class_labels=vector).sample
    assert off(ours.unet(x, T, Cond(context=context, vector=vector)), wanted) < TOLERANCE
    again = diffusers.UNet2DConditionModel.from_pretrained(exported(tmp_path) / "unet").eval()
    assert off(again(x, T, context, class_labels=vector).sample, wanted) < TOLERANCE


REFUSED = {
    diffusers.UNet2DConditionModel: (TEXTS["Stable Diffusion 1"], [
        {"act_fn": "gelu"}, {"freq_shift": 1}, {"center_input_sample": True}, {"class_embed_type": "timestep"},
        {"only_cross_attention": True}, {"addition_embed_type": "text"}, {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"}, {"time_embedding_dim": 99}, {"encoder_hid_dim": 3},
        {"attention_head_dim": [1, 4, 2]}, {"cross_attention_dim": [12, 3, 12]}, {"layers_per_block": [1, 2, 1]},
        {"transformer_layers_per_block": [1, 2, 3]}, {"block_out_channels": [8, 12, 16]}, {"norm_num_groups": None},
        {"up_block_types": ["CrossAttnUpBlock2D"] * 3}, {"resnet_time_scale_shift": "ada_group"}, {"new_thing": 1},
    ]),
    diffusers.UNet2DModel: (PLAINS["CelebA-HQ"], [
        {"add_attention": False}, {"mid_block_type": None}, {"time_embedding_type": "fourier"},
        {"attn_norm_num_groups": 2}, {"downsample_padding": 0}, {"mid_block_scale_factor": 1.4},
        {"resnet_time_scale_shift": "scale_shift"}, {"down_block_types": ["SkipDownBlock2D"] * 3}, {"out_channels": 6},
    ]),
}  # fmt: skip
CHANGES = [(kind, options, change) for kind, (options, changes) in REFUSED.items() for change in changes]


@pytest.mark.parametrize("kind, options, change", CHANGES, ids=[f"{k.__name__} {c}" for k, _, c in CHANGES])
def test_an_option_that_we_cannot_follow_is_refused_by_name(kind, options, change, tmp_path):
    with torch.device("meta"):
        config = dict(kind(**options).config)
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(config | {"_class_name": kind.__name__} | change))
    torch.save({"conv_in.weight": torch.zeros(1)}, tmp_path / "theirs" / "diffusion_pytorch_model.bin")
    name = next(iter(change)) if change != {"resnet_time_scale_shift": "scale_shift"} else "attn_norm_num_groups"
    with pytest.raises(UserError, match=name):
        import_folder(str(tmp_path / "theirs"), output=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
