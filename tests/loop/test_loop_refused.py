"""User errors are refused in one line, with exit code 2, and no files are written."""

import json
import shutil

import pytest
from conftest import STAGE_ONE, STAGE_TWO, TWENTY, call, files_in, tensors_of
from PIL import Image

from latentdiff.training import checkpoint

RECIPE = "from latentdiff.recipe import DiffusionRecipe\nfrom latentdiff.training.settings import TrainConfig\n"

FILES = {  # content of a recipe file -> words of the error
    "recipe = DiffusionRecipe(train=TrainConfig(stepz=3))": ["'stepz'", "did you mean 'steps'?"],
    "recipe = DiffusionRecipe(train=TrainConfig(steps='many'))": ["train.steps", "whole number"],
    "recipe = DiffusionRecipe(train=TrainConfig(lr='1e-4'))": ["train.lr", "'1e-4'", "a number"],
    "recipe = DiffusionRecipe(data=TrainConfig())": ["data", "Shapes, Folder"],
    "recipe = DiffusionRecipe(train=TrainConfig(steps=0))": ["train.steps is 0"],
    "from latentdiff.data.masks import MasksConfig\nrecipe = DiffusionRecipe(derived_fields=(MasksConfig(),))": [
        "no condition reads"
    ],
    "recipe = 3": ["DiffusionRecipe", "int"],
    "recipe = {}['lr']": ["KeyError"],
    "recipe = TrainConfig(": ["SyntaxError"],
    "import nothing_of_that_name": ["nothing_of_that_name"],
    "": ["must set `recipe`"],
}


@pytest.mark.parametrize("text", FILES, ids=lambda text: text[9:50] or "empty")
def test_wrong_recipe_files_are_refused_by_name(text, refused, tmp_path, runs):
    (tmp_path / "mine.py").write_text(RECIPE + text)
    error = refused("train_diffusion", tmp_path / "mine.py")
    assert all(word in error for word in [*FILES[text], "mine.py"])
    assert not runs.exists()


BOTH = {  # arguments for both stages -> words of the error
    ("train.stepz=3",): ["'stepz'", "did you mean 'steps'?"],
    ("trane.steps=3",): ["'trane'", "did you mean 'train'?"],
    ("train.steps=many",): ["train.steps=many", "whole number"],
    ("train.steps=1.5",): ["train.steps=1.5"],
    ("train.steps=0",): ["at least 1"],
    ("train.num_workers=-1",): ["train.num_workers is -1"],
    ("train.ema_decay=9",): ["train.ema_decay is 9"],
    ("train.lr=nan",): ["train.lr"],
    ("train.betas=0.9",): ["two numbers"],
    ("train.lr_schedule=sawtooth",): ["cosine"],
    ("train.precision=fp8",): ["fp8", "bf16"],
    ("train.device=abacus",): ["abacus"],
    ("train.batch_size=6", "train.grad_accum_steps=4"): ["multiple of 4"],
    ("data.height=16",): ["data.height is 16"],
    ("data=Folder", "data.path=/nowhere/at/all"): ["/nowhere/at/all"],
    ("--overfit", "none"): ["--overfit"],
    ("--overfit",): ["--overfit needs a value"],
    ("--report-to", "paper"): ["tensorboard"],
    ("--fast",): ["--fast"],
    ("steps",): ["'steps'"],
}


@pytest.mark.parametrize("stage", [STAGE_ONE, STAGE_TWO], ids=["one", "two"])
@pytest.mark.parametrize("argv", BOTH, ids=" ".join)
def test_wrong_arguments_are_refused_by_name(stage, argv, refused, runs):
    error = refused(*stage, *argv)
    assert all(word in error for word in BOTH[argv])
    assert not runs.exists()


ONE = {
    ("discriminator.norm=layer",): ["group"],
    ("discriminator.start=3", "discriminator.train_from=5"): ["lower train_from"],
    ("autoencoder.norm_groups=7",): ["norm_groups is 7"],
    ("autoencoder.channel_mult=",): ["channel_mult"],
    ("train.compile=true",): ["train.compile", "stage two"],
    ("autoencoder.bottleneck=VAE",): ["KL, VQ or Identity"],
    ("loss.perceptual=LPIPS", "loss.perceptual.backbone_weights=/nowhere.pth"): ["/nowhere.pth"],
}
TWO = {
    ("autoencoder=",): ["autoencoder is empty"],
    ("cache.batch_size=0",): ["cache.batch_size is 0"],
    ("autoencoder=nowhere",): ["no run at nowhere"],
    ("autoencoder=nowhere.py",): ["no recipe at nowhere.py"],
    ("autoencoder.latent_stats=mine",): ["run, data or identity"],
    ("autoencoder.latent_stats=data", "cache.enabled=false"): ["cache.enabled=true"],
    ("objective.prediction=wild",): ["wild"],
    ("schedule.kind=wild",): ["wild"],
    ("sampling.sampler=wild",): ["dpmpp_2m"],
    ("sampling.guidance_scale=2", "conditions="): ["guidance_scale"],
    ("conditions.0.tokenizer=nowhere.json",): ["nowhere.json"],
    ("conditions.0.max_length=2",): ["max_length of Text is 2", "at least 3"],
    ("conditions.1.dim=3",): ["conditions has no item '1'"],
    ("unet.norm_groups=7",): ["norm_groups"],
    ("preview_prompts=" + "star " * 40,): ["preview_prompts has", "40 tokens", "at most 30", "use preview_prompts="],
}


@pytest.mark.parametrize("argv", [*ONE, *TWO], ids=" ".join)
def test_wrong_fields_of_one_stage_are_refused(argv, refused, runs):
    stage, table = (STAGE_ONE, ONE) if argv in ONE else (STAGE_TWO, TWO)
    error = refused(*stage, *argv)
    assert all(word in error for word in table[argv])
    assert not runs.exists()


def test_a_classifier_is_not_compiled(refused, runs):
    assert "train.compile is true" in refused("train_classifier", "train.compile=true")
    assert not runs.exists()


def test_missing_files_are_refused(refused, runs):
    assert "no recipe at nowhere.py" in refused("train_autoencoder", "nowhere.py")
    assert "AutoencoderRecipe" in refused("train_autoencoder", STAGE_TWO[1])
    assert "no run at nowhere" in refused("evaluate", "nowhere")
    assert not runs.exists()


def test_images_without_captions_cannot_train_text(refused, runs, tmp_path):
    for i in range(4):
        Image.new("RGB", (32, 32), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert "no captions" in refused(*STAGE_TWO, "data=Folder", f"data.path={tmp_path}", "data.size=32")
    assert not runs.exists()


# ---- files of an earlier run


def test_a_run_is_not_shortened(stage_two_run, copy_run, refused):
    run = copy_run(stage_two_run)
    before = {path: (run / path).stat().st_mtime_ns for path in files_in(run)}
    error = refused(*STAGE_TWO, *TWENTY, "train.steps=19", "name=run")
    assert "train.steps is 19" in error and "done 20" in error
    assert {path: (run / path).stat().st_mtime_ns for path in files_in(run)} == before


def damaged_checkpoint(run, how):
    path = run / "checkpoints" / "step_00000020"
    if how == "truncated":
        content = (path / "optimizer.safetensors").read_bytes()
        (path / "optimizer.safetensors").write_bytes(content[:-100])
    elif how == "garbled":
        size = (path / "model.safetensors").stat().st_size
        (path / "model.safetensors").write_bytes(b"\xff" * size)
    else:
        (path / how).unlink()


@pytest.mark.parametrize("how", ["truncated", "garbled", "ema.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_can_be_used(how, stage_two_run, copy_run, refused):
    run = copy_run(stage_two_run)
    damaged_checkpoint(run, how)
    before = {path: (run / path).stat().st_mtime_ns for path in files_in(run)}
    error = refused(*STAGE_TWO, *TWENTY, "name=run")
    assert "step_00000020" in error and "damaged" in error
    assert {path: (run / path).stat().st_mtime_ns for path in files_in(run)} == before
    shutil.rmtree(run / "checkpoints" / "step_00000020")
    call(*STAGE_TWO, *TWENTY, "name=run")
    assert tensors_of(run / "checkpoints" / "step_00000020").keys()


def test_a_cache_of_another_autoencoder_is_refused(stage_one_run, refused, runs, tmp_path):
    call(*STAGE_TWO, "train.steps=1", f"cache.path={tmp_path / 'cache'}", "name=first")
    before = files_in(tmp_path)
    error = refused(*STAGE_TWO, "train.steps=1", f"cache.path={tmp_path / 'cache'}", f"autoencoder={stage_one_run}")
    assert "another autoencoder" in error and "cache.path" in error
    assert "another data" in refused(*STAGE_TWO, "data.seed=5", f"cache.path={tmp_path / 'cache'}", "name=b")
    assert files_in(tmp_path) == before


def test_overfit_runs_have_their_own_cache(runs):
    call(*STAGE_TWO, "train.steps=1", "--overfit=4", "name=check")
    call(*STAGE_TWO, "train.steps=1", "name=whole")
    assert len(list((runs / "cache").iterdir())) == 2


def test_a_damaged_cache_is_named_and_repaired_by_deleting_the_file(runs, refused, tmp_path, capsys):
    argv = (*STAGE_TWO, "train.steps=1", f"cache.path={tmp_path / 'cache'}")
    call(*argv, "name=a")
    shard = tmp_path / "cache" / "shard_00001.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    error = refused(*argv, "name=b")
    assert str(shard) in error and "delete it" in error and not (runs / "b").exists()
    shard.unlink()
    call(*argv, "name=b")
    assert shard.read_bytes() == whole


def test_a_folder_that_cannot_be_created_is_refused(refused, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LATENTDIFF_RUNS", str(tmp_path / "file"))
    assert "cannot write" in refused(*STAGE_ONE, "train.steps=1")
    assert "cannot write" in refused(*STAGE_TWO, "train.steps=1")


def test_weights_that_do_not_fit_are_refused(stage_two_run, copy_run, refused, tmp_path):
    run = copy_run(stage_two_run)
    tensors = checkpoint.read_tensors(run / "model.safetensors")
    tensors.pop("unet.conv_in.weight" if "unet.conv_in.weight" in tensors else sorted(tensors)[-1])
    checkpoint.write_tensors(run / "model.safetensors", tensors)
    assert "1 tensors missing" in refused("sample", "--run", run, "--prompt", "a star", "--output", tmp_path / "out")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["unet"]["colour"] = "red"
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert "colour" in refused("sample", "--run", run, "--prompt", "a star", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
