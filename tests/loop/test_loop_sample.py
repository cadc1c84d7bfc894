"""sample.py: an image depends only on its inputs and seed, contains its parameters, and never overwrites a file."""

import json

import numpy as np
import pytest
from conftest import STAGE_TWO, call, files_in
from PIL import Image

PROMPT = "a large red star on a black background"
OTHER = "a small blue ring on a white background"


@pytest.fixture
def sample(overfit_run, tmp_path):
    """sample(argv..., into="out") -> the output folder; four steps, with guidance."""

    def sample(*argv, into="out"):
        call("sample", "--run", overfit_run, "--output", tmp_path / into, "--steps", 4, "--guidance-scale", 2, *argv)
        return tmp_path / into

    return sample


def read_images(folder):
    return {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted(folder.glob("0*.png"))}


def test_a_seed_gives_the_same_image_for_any_batch_size(sample):
    """--seed 7 --num-images 3 means 7, 8, 9 for every prompt."""
    argv = ("--prompt", PROMPT, "--prompt", OTHER)
    whole = read_images(sample(*argv, "--seed", 7, "--num-images", 3, into="whole"))
    single = read_images(sample(*argv, "--seed", 7, "--num-images", 3, "--batch-size", 1, into="single"))
    ranged = read_images(sample(*argv, "--seed", "7-9", "--batch-size", 4, into="ranged"))
    names = [f"{i:05d}-s{seed}.png" for i, seed in enumerate([7, 8, 9] * 2)]
    assert list(whole) == list(single) == list(ranged) == names
    for other in (single, ranged):
        assert max(np.abs(whole[name] - other[name]).max() for name in names) <= 1
    single_image = read_images(sample("--prompt", OTHER, "--seed", 8, into="single_image"))["00000-s8.png"]
    assert np.abs(single_image - whole["00004-s8.png"]).max() <= 1
    assert np.abs(whole["00000-s7.png"] - whole["00001-s8.png"]).max() > 20  # another seed
    assert np.abs(whole["00000-s7.png"] - whole["00003-s7.png"]).max() > 20  # another prompt


def test_a_stochastic_sampler_gives_the_same_images_for_any_batch_size(sample):
    argv = ("--prompt", PROMPT, "--num-images", 3, "--sampler", "ddpm")
    whole, single = (read_images(sample(*argv, "--batch-size", size, into=f"{size}")) for size in (3, 1))
    assert max(np.abs(whole[name] - single[name]).max() for name in whole) <= 1


def test_the_parameters_are_stored_in_the_image(sample, overfit_run):
    folder = sample(
        "--prompt", PROMPT, "--seed", 7, "--negative-prompt", "a ring", "--H", 40, "--width=48", "--no-grid"
    )
    with Image.open(folder / "00000-s7.png") as image:
        assert image.size == (48, 40)
        params, text = json.loads(image.text["latentdiff"]), image.text["parameters"]
    assert params | {"prompt": PROMPT, "seed": 7, "height": 40, "width": 48, "steps": 4, "guidance_scale": 2.0,
                    "negative_prompt": "a ring", "run": overfit_run.name, "sampler": "dpmpp_2m"} == params  # fmt: skip
    assert text.startswith(PROMPT) and "Negative prompt: a ring" in text and "Seed: 7, Size: 48x40" in text
    row = json.loads((folder / "samples.jsonl").read_text())
    assert row == {"file_name": "00000-s7.png"} | params
    assert files_in(folder) == ["00000-s7.png", "samples.jsonl"]


def test_nothing_is_overwritten(sample):
    argv = ("--prompt", PROMPT, "--num-images", 2)
    folder = sample(*argv)
    before = {name: (folder / name).read_bytes() for name in ("00000-s0.png", "00001-s1.png", "grid.png")}
    sample(*argv)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    assert set(files_in(folder)) == {*before, "00002-s0.png", "00003-s1.png", "grid-1.png", "samples.jsonl"}
    assert len((folder / "samples.jsonl").read_text().splitlines()) == 4


def test_prompts_can_be_read_from_a_file(sample, tmp_path):
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n  {OTHER}  \n")
    folder = sample("--from-file", tmp_path / "prompts.txt", "--n_samples", 2, "--ddim_steps", 2)
    prompts = [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert prompts == [PROMPT, PROMPT, OTHER, OTHER]


def test_a_negative_prompt_and_guidance_change_the_image(sample):
    images = [
        read_images(sample("--prompt", PROMPT, *argv, into=str(i)))["00000-s0.png"]
        for i, argv in enumerate([(), ("--negative-prompt", OTHER), ("--scale", 1), ("--guidance-rescale", 1)])
    ]
    assert all(np.abs(images[0] - image).max() > 2 for image in images[1:])


def test_the_newest_run_that_takes_a_prompt_is_the_default(overfit_run, stage_one_run, copy_run, tmp_path, capsys):
    copy_run(overfit_run, "text")
    call(*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=uncond")
    copy_run(stage_one_run, "first-stage")
    (copy_run(overfit_run, "incomplete") / "recipe.json").unlink()
    call("sample", "--prompt", PROMPT, "--steps", 2, "--output", tmp_path / "a")
    assert '"run": "text"' in (tmp_path / "a" / "samples.jsonl").read_text()
    call("sample", "--steps", 2, "--output", tmp_path / "b")
    assert '"run": "uncond"' in (tmp_path / "b" / "samples.jsonl").read_text()


# ---- refused, without output


REFUSED = {
    ("--prompt", "star " * 60): "at most 30",
    ("--prompt", PROMPT, "--prompt", "star " * 60, "--batch-size", 1): "at most 30",
    ("--prompt", PROMPT, "--negative-prompt", "star " * 60): "at most 30",
    ("--prompt", PROMPT, "--negative-prompt", "a star", "--guidance-scale", 1): "--negative-prompt has no effect",
    ("--prompt", PROMPT, "--sampler", "magic"): "dpmpp_2m",
    ("--prompt", PROMPT, "--eta", 0.5): "eta",
    ("--prompt", PROMPT, "--steps", 0): "--steps",
    ("--prompt", PROMPT, "--steps", 5000): "1000",
    ("--prompt", PROMPT, "--steps", "many"): "--steps",
    ("--prompt", PROMPT, "--height", 33): "multiple of 4",
    ("--prompt", PROMPT, "--tile-size", 3): "--tile-size is 3",
    ("--prompt", PROMPT, "--tiling", "blended"): "needs --tile-size",
    ("--prompt", PROMPT, "--tile-size", 16, "--tiling", "rough"): "one of exact, offloaded, blended",
    ("--prompt", PROMPT, "--seed", "9-7"): "--seed",
    ("--prompt", PROMPT, "--precision", "fp8"): "fp8",
    ("--prompt", PROMPT, "--device", "abacus"): "abacus",
    ("--prompt", PROMPT, "--colour", "red"): "--colour",
    ("--prompts-file", "nowhere.txt"): "nowhere.txt",
    (): "--prompt",
}


@pytest.mark.parametrize("argv", REFUSED, ids=lambda argv: " ".join(map(str, argv))[-40:] or "no prompt")
def test_wrong_options_are_refused_and_leave_no_folder(argv, overfit_run, refused, tmp_path):
    error = refused("sample", "--run", overfit_run, "--output", tmp_path / "out", *argv)
    assert REFUSED[argv] in error
    assert not (tmp_path / "out").exists()


def test_autoguidance_without_effect_is_refused(overfit_run, refused, tmp_path):
    argv = ("--run", overfit_run, "--prompt", PROMPT, "--autoguide", overfit_run, "--output", tmp_path / "out")
    assert "--autoguide has no effect" in refused("sample", *argv, "--guidance-scale", 1)
    assert "use one of them" in refused("sample", *argv, "--guidance-scale", 2, "--negative-prompt", "a star")
    assert not (tmp_path / "out").exists()


def test_autoguidance_uses_the_weights_of_the_given_checkpoint(stage_two_run, tmp_path):
    argv = ("--run", stage_two_run, "--prompt", PROMPT, "--steps", 2, "--guidance-scale", 9, "--output")
    first = stage_two_run / "checkpoints" / "step_00000010"
    for name, weak_model in (("itself", stage_two_run), ("earlier", first)):
        call("sample", *argv, tmp_path / name, "--autoguide", weak_model)
    itself, earlier = (read_images(tmp_path / name) for name in ("itself", "earlier"))
    assert itself.keys() == earlier.keys() and not any(np.array_equal(itself[n], earlier[n]) for n in itself)


def test_runs_that_cannot_sample_are_refused(stage_one_run, refused, tmp_path):
    out = ("--output", tmp_path / "out")
    assert "nowhere" in refused("sample", "--run", "nowhere", "--prompt", PROMPT, *out)
    assert "stage-one" in refused("sample", "--run", stage_one_run, "--prompt", PROMPT, *out)
    assert "no finished" in refused("sample", "--prompt", PROMPT, *out)
    call(*STAGE_TWO, "conditions=", "sampling.guidance_scale=1", "train.steps=1", "name=uncond")
    assert "--prompt" in refused("sample", "--run", "uncond", "--prompt", PROMPT, *out)
    assert "guidance" in refused("sample", "--run", "uncond", "--guidance-scale", 3, *out)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file_is_refused(overfit_run, refused, tmp_path):
    (tmp_path / "out").write_text("other")
    assert "--output" in refused("sample", "--run", overfit_run, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "other"


def test_damaged_weights_are_refused(overfit_run, copy_run, refused, tmp_path):
    run = copy_run(overfit_run)
    content = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").write_bytes(content[: len(content) // 2])
    error = refused("sample", "--run", run, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert "model.safetensors" in error
    (run / "recipe.json").write_text("{")
    assert "recipe.json" in refused("sample", "--run", run, "--prompt", PROMPT, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()
