"""The paper's recipes build the published networks, to the parameter."""

import pytest
import torch
from conftest import ROOT

from latentdiff.autoencoder.autoencoder import Autoencoder
from latentdiff.build import build_diffusion
from latentdiff.config import read_recipe
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

FIRST_STAGES = {  # parameters of the release's configs, without its losses
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
DIFFUSION = {  # U-Net, condition (without the text encoder's to_logits, which nothing reads), first stage
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
TOKENIZER = CaptionTokenizer(wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]), 77)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def first_stage(name: str) -> Autoencoder:
    return Autoencoder(read_recipe(ROOT / f"recipes/autoencoder/paper/{name}.py", AutoencoderRecipe).autoencoder)


def test_every_released_config_has_its_recipe():
    for stage, names in (("autoencoder", FIRST_STAGES), ("diffusion", DIFFUSION)):
        assert {path.stem for path in ROOT.glob(f"recipes/{stage}/paper/*.py")} == set(names)


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_the_first_stage_has_the_published_parameters(name):
    with torch.device("meta"):
        assert count(first_stage(name)) == FIRST_STAGES[name]


@pytest.mark.parametrize("name", DIFFUSION)
def test_the_diffusion_model_has_the_published_parameters(name):
    recipe = read_recipe(ROOT / f"recipes/diffusion/paper/{name}.py", DiffusionRecipe)
    with torch.device("meta"):
        autoencoder = first_stage(recipe.autoencoder.path.removesuffix("-autoencoder"))
        model = build_diffusion(recipe, autoencoder, TOKENIZER)
    assert (count(model.unet), count(model.conditioner), count(autoencoder)) == DIFFUSION[name]
