"""Runs as pipelines of diffusers: the same images after export, the same weights after import."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import call
from diffusers_models import (
    VOCABULARY,
    diffusers,
    exported,
    imported,
    random_run,
    randomised,
    relative_error,
    unet_options,
    vae_options,
)  # fmt: skip
from PIL import Image
from safetensors.torch import load_file

import latentdiff
from latentdiff.autoencoder.autoencoder import AutoencoderConfig
from latentdiff.autoencoder.bottleneck import IdentityConfig, VQConfig
from latentdiff.conditioning.label import LabelConfig
from latentdiff.conditioning.layout import LayoutConfig
from latentdiff.conditioning.low_res import LowResConfig
from latentdiff.conditioning.text import TextConfig
from latentdiff.config import UserError
from latentdiff.convert.__main__ import main as convert
from latentdiff.convert.diffusers import noise_schedule
from latentdiff.convert.diffusers.export_run import describe_call
from latentdiff.convert.diffusers.import_folder import import_folder
from latentdiff.data.degrade import DegradeConfig
from latentdiff.data.folder import FolderConfig
from latentdiff.data.tokenizer import CaptionTokenizer, wordpiece
from latentdiff.diffusion.loss import ObjectiveConfig
from latentdiff.diffusion.sampling_config import SamplingConfig
from latentdiff.diffusion.schedule import Schedule, ScheduleConfig
from latentdiff.diffusion.unet import UNetConfig
from latentdiff.recipe import AutoencoderRecipe, DiffusionRecipe

DDIM = SamplingConfig("ddim", steps=10, guidance_scale=1.0)
TEXT = TextConfig(dim=12, depth=1, heads=2, head_dim=4, max_length=77, vocab_size=len(VOCABULARY), mask_padding=False)


def first_stage(levels: int = 4, **others) -> AutoencoderRecipe:
    widths = {"channels": 8, "channel_mult": (1,) * levels, "num_res_blocks": 1, "norm_groups": 4}
    return AutoencoderRecipe(name="first", autoencoder=AutoencoderConfig(**widths | others))


def second_stage(*conditions, heads: int = 0, **others) -> DiffusionRecipe:
    unet = UNetConfig(channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_levels=(1,), head_channels=4,
                      norm_groups=4)  # fmt: skip
    return DiffusionRecipe(name="run", data=FolderConfig(path="", size=32), conditions=conditions, unet=unet,
                           **{"sampling": DDIM} | others)  # fmt: skip


def tokenizer(length: int = 77) -> CaptionTokenizer:
    return CaptionTokenizer(wordpiece(VOCABULARY), length)


PIXELS = first_stage(0, z_channels=3, bottleneck=IdentityConfig())
VQ3 = first_stage(3, z_channels=3, bottleneck=VQConfig(codebook_size=16))
SUPERRES = {"derived_fields": (DegradeConfig(scale=4),)}
RUNS = {  # a run's recipe, its first stage, and the pipeline of diffusers that it becomes
    "text": (second_stage(TEXT), first_stage(), "LDMTextToImagePipeline"),
    "text, predicting v": (second_stage(TEXT, objective=ObjectiveConfig("v")), first_stage(), "LDMTextToImagePipeline"),
    "text, original grid": (
        second_stage(TEXT, sampling=replace(DDIM, timestep_spacing="uniform")), first_stage(),
        "LDMTextToImagePipeline"),
    "text, cosine": (second_stage(TEXT, schedule=ScheduleConfig("cosine")), first_stage(), "LDMTextToImagePipeline"),
    "text, shifted": (
        second_stage(TEXT, schedule=ScheduleConfig("linear", snr_shift=2.0)), first_stage(), "LDMTextToImagePipeline"),
    "unconditional": (second_stage(), VQ3, "LDMPipeline"),
    "unconditional, KL": (second_stage(), first_stage(3), "LDMPipeline"),
    "super-resolution": (second_stage(LowResConfig(), **SUPERRES), VQ3, "LDMSuperResolutionPipeline"),
    "pixels": (second_stage(schedule=ScheduleConfig("linear")), PIXELS, "DDIMPipeline"),
    "masked padding": (second_stage(replace(TEXT, mask_padding=True)), first_stage(), None),
    "short captions, larger latents": (second_stage(replace(TEXT, max_length=9)), first_stage(3), None),
    "flow": (
        second_stage(TEXT, schedule=ScheduleConfig("flow"), objective=ObjectiveConfig("flow")), first_stage(), None),
    "classes in the context": (second_stage(LabelConfig(5, 6)), VQ3, None),
    "classes as a vector": (second_stage(LabelConfig(5, 6, input="vector")), VQ3, None),
    "layout": (second_stage(LayoutConfig(classes=3, dim=8, depth=1)), VQ3, None),
}  # fmt: skip


def run_of(name: str, folder, scale: float = 1.0):
    recipe, first, _ = RUNS[name]
    own = next((tokenizer(c.max_length) for c in recipe.conditions if isinstance(c, TextConfig)), None)
    return random_run(recipe, folder, first, own, scale)


@pytest.mark.parametrize("name", RUNS)
def test_export_and_import_give_the_same_weights_bit_for_bit(name, tmp_path, capsys):
    scale = 1.0 if name in ("pixels", "super-resolution") else 0.18215
    run, (recipe, _, name) = run_of(name, tmp_path / "run", scale), RUNS[name]
    folder = exported(tmp_path)
    assert (folder / "model_index.json").exists() == (name is not None)
    assert "no " in capsys.readouterr().out or name
    import_folder(str(folder), output=str(tmp_path / "again"))
    for file in ("model.safetensors", "autoencoder/model.safetensors"):
        before, after = load_file(run / file), load_file(tmp_path / "again" / file)
        assert sorted(before) == sorted(after)
        assert [n for n in before if before[n].dtype != after[n].dtype or not torch.equal(before[n], after[n])] == []
    pipeline = latentdiff.load_run(tmp_path / "again")
    unet = replace(pipeline.unet.config, num_heads=8, head_channels=4)  # 4 heads of width 4: both fields express it
    assert (unet, pipeline.model.objective) == (recipe.unet, recipe.objective)
    assert pipeline.unet.config.heads(16) == 4
    t = torch.arange(1000.0)
    assert torch.equal(pipeline.schedule.alpha(t), Schedule(recipe.schedule).alpha(t))


def sample_with_diffusers(pipeline, recipe, z, **others):
    options = {"num_inference_steps": recipe.sampling.steps, "output_type": "np"} | others
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:  # only one of the pipelines takes the noise as an argument
        module = __import__(type(pipeline).__module__, fromlist=["randn_tensor"])
        patch.setattr(module, "randn_tensor", lambda shape, **_: z.reshape(shape))
        return torch.from_numpy(pipeline(**options).images).permute(0, 3, 1, 2)


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, (*_, pipeline) in RUNS.items() if pipeline])
def test_the_exported_pipeline_samples_the_same_images(name, tmp_path):
    run_of(name, tmp_path / "run", scale=1.0 if name == "pixels" else 0.5)
    run, (recipe, _, pipeline_name) = latentdiff.load_run(tmp_path / "run"), RUNS[name]
    pipeline = diffusers.DiffusionPipeline.from_pretrained(exported(tmp_path))
    assert type(pipeline).__name__ == pipeline_name
    batch, inputs, guided = {}, {}, {}
    if recipe.conditions == (TEXT,):
        batch = run.prepare({"caption": ["a red circle"]})
        inputs, guided = {"prompt": ["a red circle"], "guidance_scale": 3.0}, {"guidance_scale": 3.0}
    elif recipe.conditions:
        batch = {"low_res": torch.randint(256, (1, 8, 8, 3), dtype=torch.uint8)}
        inputs = {"image": batch["low_res"].permute(0, 3, 1, 2) / 127.5 - 1}
    z = torch.randn(run.latent_shape(), generator=torch.Generator().manual_seed(7))
    *_, latent = run.latents(batch, [7], replace(recipe.sampling, **guided))
    expected = (run.autoencoder.decode(latent) / 2 + 0.5).clamp(0, 1)
    assert (sample_with_diffusers(pipeline, recipe, z[None], **inputs) - expected).abs().max() < 1 / 2550


def test_the_export_reports_why_there_is_no_pipeline(tmp_path, capsys):
    run_of("short captions, larger latents", tmp_path / "run")
    exported(tmp_path)
    output = capsys.readouterr().out
    assert "conditions.0.max_length is 9" in output and "the autoencoder has factor 4" in output


def test_the_export_reports_settings_that_the_pipeline_does_not_follow():
    call, *rest = describe_call("LDMPipeline", SamplingConfig("ddim", steps=20), 1000)
    assert call == "LDMPipeline: pipeline(num_inference_steps=20, eta=0)" and not rest
    report = " ".join(describe_call("LDMTextToImagePipeline", SamplingConfig(steps=30, guidance_rescale=0.5), 1000))
    assert all(text in report for text in ("guidance_scale=4", "sampler=dpmpp_2m", "steps=30", "guidance_rescale=0.5"))


def test_a_unet_that_diffusers_cannot_express_is_refused_by_field(tmp_path):
    recipe = second_stage()
    random_run(replace(recipe, unet=replace(recipe.unet, head_channels=0, num_heads=2, attention_levels=(0, 1))),
           tmp_path / "run", VQ3)  # fmt: skip
    with pytest.raises(UserError, match="unet.num_heads=2"):
        exported(tmp_path)
    assert not list(tmp_path.glob("*run-exported*"))


@pytest.mark.parametrize("kind, change", [("sqrt", {}), ("linear", {"snr_shift": 2.0}), ("cosine", {"cosine_s": 0.1}),
                                          ("linear", {"zero_terminal_snr": True})])  # fmt: skip
def test_any_variance_preserving_schedule_can_be_exported(kind, change):
    config = ScheduleConfig(kind, beta_start=1e-4, beta_end=2e-2, **change)
    scheduler = diffusers.DDIMScheduler.from_config(noise_schedule.to_diffusers(config, "v", "trailing"))
    assert relative_error(scheduler.alphas_cumprod, Schedule(config).alphas_cumprod) < 1e-6


def test_another_pipeline_is_refused_with_a_list_of_its_models(tmp_path):
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match=r"StableDiffusionPipeline.*/vae"):
        import_folder(str(tmp_path), output=str(tmp_path / "run"))


def test_old_names_half_precision_and_pickles_are_read(tmp_path):
    model = randomised(diffusers.AutoencoderKL(**vae_options(8, 8)))
    expected = imported(model, tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = model.state_dict()
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    (tmp_path / "run-diffusers" / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(
        {key: value.half() for key, value in state.items()}, tmp_path / "run-diffusers/diffusion_pytorch_model.bin"
    )
    import_folder(str(tmp_path / "run-diffusers"), output=str(tmp_path / "half"))
    again = latentdiff.load_run(tmp_path / "half").state_dict()
    assert all(value.dtype == torch.float32 for value in again.values())
    assert all(torch.equal(again[name], value.half().float()) for name, value in expected.state_dict().items()
               if name not in ("latent_shift", "latent_scale"))  # fmt: skip


def test_missing_and_unknown_weights_are_listed_and_no_files_are_left(tmp_path):
    model = randomised(diffusers.AutoencoderKL(**vae_options(8, 8)))
    model.save_pretrained(tmp_path / "model")
    state = model.state_dict()
    for change, message in (
        ({"odd.weight": torch.zeros(1)}, "unknown: odd.weight"),
        ({}, "missing: encoder.conv_in.bias"),
    ):
        torch.save({k: v for k, v in state.items() if k != "encoder.conv_in.bias" or change} | change,
                   tmp_path / "model" / "model.bin")  # fmt: skip
        (tmp_path / "model" / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
        with pytest.raises(UserError, match=message):
            import_folder(str(tmp_path / "model"), output=str(tmp_path / "run"))
        assert not list(tmp_path.glob("*run*"))


@pytest.mark.slow
def test_a_diffusion_model_trains_on_the_latents_of_an_imported_autoencoder(runs):
    imported(randomised(diffusers.AutoencoderKL(**vae_options(8, 16, 16))), runs, "sd-vae")
    call("train_diffusion", "recipes/diffusion/tiny.py", f"autoencoder={runs / 'sd-vae'}", "train.steps=2", "name=two")
    actual, expected = (load_file(p / "model.safetensors") for p in (runs / "two/autoencoder", runs / "sd-vae"))
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_a_unet_alone_takes_the_autoencoder_of_a_run(runs, capsys):
    imported(randomised(diffusers.AutoencoderKL(**vae_options(8, 8))), runs, "vae")
    unet = randomised(
        diffusers.UNet2DModel(**unet_options(8, attention=(0,), kind="Attn", in_channels=4, out_channels=4))
    )
    assert imported(unet, runs, "one", autoencoder="vae").autoencoder.factor == 2
    assert "UNTRAINED" not in capsys.readouterr().out
    imported(unet, runs, "two")
    assert "UNTRAINED" in capsys.readouterr().out
    with pytest.raises(UserError, match="out_channels of the U-Net is 3"):
        imported(randomised(diffusers.UNet2DModel(**unet_options(8))), runs, "three", autoencoder="vae")


@pytest.mark.slow
def test_the_portable_recipe_samples_the_same_images_in_diffusers(runs, tmp_path):
    call("train_diffusion", "recipes/diffusion/portable.py", "train.steps=50", "train.val_every=50",
         "train.sample_every=50", "train.log_every=25", "train.checkpoint_every=50")  # fmt: skip
    prompt, seeds = "a large red circle", [3, 4]
    call(
        "sample", "--run", "portable", "--prompt", prompt, "--seed", "3-4", "--output", tmp_path / "images", "--no-grid"
    )
    images = np.stack([np.asarray(Image.open(path)) for path in sorted((tmp_path / "images").glob("*.png"))])
    convert(["diffusers-export", "portable", str(tmp_path / "exported")])
    pipeline = diffusers.LDMTextToImagePipeline.from_pretrained(tmp_path / "exported")
    pipeline.set_progress_bar_config(disable=True)
    run = latentdiff.load_run("portable")
    sampling, shape = run.model.sampling, (1, *run.latent_shape())
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    diffusers_images = pipeline([prompt] * 2, latents=torch.cat(noise), num_inference_steps=sampling.steps,
                                guidance_scale=sampling.guidance_scale, output_type="np").images  # fmt: skip
    assert np.abs(images / 255 - diffusers_images).max() <= 1 / 255
    assert images[0].std() > 1 and np.abs(images[0].astype(int) - images[1]).max() > 1  # not constant, nor equal
