"""The paper's recipes build the published networks, to the parameter."""

from pathlib import Path

import pytest
import torch
from conftest import ROOT

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_classifier, build_diffusion
from latentdiff.config import read_recipe
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece
from latentdiff.model import LatentDiffusion
from latentdiff.recipe import AutoencoderRecipe, ClassifierRecipe, DiffusionRecipe

FIRST_STAGES = {  # parameters of the released configs, without their losses
    "vq-f4": 55_322_782,
    "vq-f4-noattn": 53_219_486,
    "vq-f8": 67_717_295,
    "vq-f8-n256": 67_652_783,
    "vq-f16": 69_593_371,
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
    "autoencoder_kl_16x16x16": 69_610_963,
    "autoencoder_kl_32x32x4": 83_653_863,
    "autoencoder_kl_64x64x3": 55_312_063,
    "autoencoder_kl_8x8x64": 103_880_131,
}
DIFFUSION = {  # U-Net, condition (without the text encoder's to_logits, which is not used), first stage
    "celeba256": (274_056_163, 0, 55_322_782),
    "ffhq256": (274_056_163, 0, 55_322_782),
    "lsun_beds256": (274_056_163, 0, 55_322_782),
    "lsun_churches256": (294_966_916, 0, 83_653_863),
    "cin256": (394_984_196, 512_000, 67_717_295),
    "text2img256": (403_623_939, 166_590_080, 55_322_782),
    "bsr_sr": (113_622_563, 0, 55_322_782),
    "inpainting_big": (387_245_827, 0, 53_219_486),
    "layout2img-openimages256": (246_277_379, 54_656_000, 55_322_782),
    "semantic_synthesis256": (215_229_315, 546, 55_322_782),
    "semantic_synthesis512": (215_229_315, 546, 55_322_782),
    "celebahq-ldm-vq-4": (274_056_163, 0, 55_322_782),
    "ffhq-ldm-vq-4": (274_056_163, 0, 55_322_782),
    "lsun_bedrooms-ldm-vq-4": (274_056_163, 0, 55_322_782),
    "lsun_churches-ldm-kl-8": (294_966_916, 0, 83_653_863),
    "cin-ldm-vq-f8": (394_984_196, 512_000, 67_717_295),
    "cin256-v2": (400_920_579, 512_512, 55_322_782),
    "txt2img-1p4B-eval": (872_300_484, 542_895_360, 83_653_863),
}
UNRELEASED = {  # parameters of the U-Net, side and channels of z, sides of attention (paper, tables 13 to 15)
    "cin-ldm-1": (396_835_971, (256, 3), (32, 16, 8)),
    "cin-ldm-2": (390_888_578, (128, 2), (32, 16, 8)),
    "cin-ldm-4": (400_920_579, (64, 3), (32, 16, 8)),
    "cin-ldm-8": (394_984_196, (32, 4), (32, 16, 8)),
    "cin-ldm-16": (395_002_632, (16, 8), (16, 8, 4)),
    "cin-ldm-32": (395_113_248, (8, 32), (8, 4, 2)),
    "celeba-ldm-1": (270_458_115, (256, 3), (32, 16, 8)),
    "celeba-ldm-2": (264_510_722, (128, 2), (32, 16, 8)),
    "celeba-ldm-8": (257_733_124, (32, 4), (32, 16, 8)),
    "celeba-ldm-16": (257_751_560, (16, 8), (16, 8, 4)),
    "celeba-ldm-32": (257_862_176, (8, 32), (8, 4, 2)),
    "bicubic_sr": (113_622_563, (64, 3), (8,)),  # with its autoencoder the table's 169 million
    "inpainting_big512": (387_245_827, (128, 3), (64, 32, 16)),
    "layout2img-coco256": (312_241_540, (32, 4), (32, 16, 8)),  # by the table's settings; it says 345 million
}
TOKENIZER = CaptionTokenizer(wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), 77)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def first_stage(name: str) -> Autoencoder:
    (path,) = ROOT.glob(f"recipes/autoencoder/paper/**/{name}.py")
    return Autoencoder(read_recipe(path, AutoencoderRecipe).autoencoder)


def built(path: Path) -> tuple[DiffusionRecipe, LatentDiffusion, Autoencoder]:
    recipe = read_recipe(path, DiffusionRecipe)
    with torch.device("meta"):
        autoencoder = first_stage(Path(recipe.autoencoder.path).stem.removesuffix("-autoencoder"))
        return recipe, build_diffusion(recipe, autoencoder, TOKENIZER), autoencoder


def test_every_released_config_has_its_recipe():
    for stage, names in (("autoencoder", FIRST_STAGES), ("diffusion", DIFFUSION)):
        assert {path.stem for path in ROOT.glob(f"recipes/{stage}/paper/*.py")} == set(names)


def test_every_unreleased_diffusion_recipe_is_compared_with_the_tables():
    assert {path.stem for path in ROOT.glob("recipes/diffusion/paper/unreleased/*.py")} == set(UNRELEASED)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_the_first_stage_has_the_published_parameters(name):
    with torch.device("meta"):
        assert count(first_stage(name)) == FIRST_STAGES[name]


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_diffusion_model_has_the_published_parameters(name):
    _, model, autoencoder = built(ROOT / f"recipes/diffusion/paper/{name}.py")
    assert (count(model.unet), count(model.conditioner), count(autoencoder)) == DIFFUSION[name]


@pytest.mark.parametrize("name", UNRELEASED)
def test_unreleased_models_match_the_tables(name):
    recipe, model, autoencoder = built(ROOT / f"recipes/diffusion/paper/unreleased/{name}.py")
    side = recipe.data.image_size[0] // autoencoder.factor
    attention = tuple(side >> level for level in recipe.unet.attention_levels)
    assert (count(model.unet), (side, autoencoder.z_channels), attention) == UNRELEASED[name]


def test_the_classifier_has_the_published_parameters_without_the_attention_pooling():
    recipe = read_recipe(ROOT / "recipes/classifier/paper/cin256-classifier.py", ClassifierRecipe)
    with torch.device("meta"):
        classifier = build_classifier(recipe, first_stage("vq-f8"))
    side, width = 8, 4 * recipe.unet.channels
    positions, q_k_v = (side**2 + 1) * width, 3 * (width + 1) * width
    assert count(classifier) == 111_604_200 - positions - q_k_v


def test_pixels_have_no_first_stage_to_train():
    assert count(first_stage("identity")) == 0
